/* SPDX-License-Identifier: Apache-2.0 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <limits.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "loader.h"

struct sl_bpf {
	struct bpf_object *object;
};

/* libbpf has one print hook for the process and gives it no context: the buffer of the load that runs on this
 * thread. */
struct log_sink {
	char *text;
	__u32 cap;
	__u32 len;
};
static __thread struct log_sink *sink;

static int log_take(enum libbpf_print_level level, const char *format, va_list args)
{
	struct log_sink *s = sink;
	int n;

	if (!s || level == LIBBPF_DEBUG || s->len + 1 >= s->cap)
		return 0;
	n = vsnprintf(s->text + s->len, s->cap - s->len, format, args);
	if (n > 0)
		s->len += (__u32)n < s->cap - s->len ? (__u32)n : s->cap - s->len - 1;
	return 0;
}

/* libbpf's low-level calls give -errno in strict mode and -1 with errno otherwise. */
static int result(int r)
{
	return r == -1 && errno ? -errno : r;
}

/* ---- object ------------------------------------------------------------------------------------------------------ */

static int pins_set(struct bpf_object *object, const char *pin_dir)
{
	struct bpf_map *map;
	char path[PATH_MAX];
	int r;

	bpf_object__for_each_map(map, object) {
		const char *name = bpf_map__name(map);

		if (strchr(name, '.'))   /* .rodata, .bss: private to one load */
			continue;
		if (snprintf(path, sizeof(path), "%s/%s", pin_dir, name) >= (int)sizeof(path))
			return -ENAMETOOLONG;
		r = bpf_map__set_pin_path(map, path);
		if (r)
			return r;
	}
	return 0;
}

static int object_load(const char *path, const char *pin_dir, struct bpf_object **out)
{
	struct bpf_object *object;
	int r;

	errno = 0;
	object = bpf_object__open_file(path, NULL);
	r = (int)libbpf_get_error(object);
	if (r)
		return r;
	r = pin_dir ? pins_set(object, pin_dir) : 0;
	if (!r)
		r = result(bpf_object__load(object));
	if (r) {
		bpf_object__close(object);
		return r;
	}
	*out = object;
	return 0;
}

int sl_bpf_open(const char *path, const char *pin_dir, char *log, __u32 log_cap, struct sl_bpf **out)
{
	struct log_sink s = { .text = log, .cap = log_cap };
	struct sl_bpf *bpf;
	int r;

	if (log_cap)
		log[0] = '\0';
	bpf = calloc(1, sizeof(*bpf));
	if (!bpf)
		return -ENOMEM;
	libbpf_set_print(log_take);
	sink = &s;
	r = object_load(path, pin_dir, &bpf->object);
	sink = NULL;
	if (r) {
		free(bpf);
		return r;
	}
	*out = bpf;
	return 0;
}

void sl_bpf_close(struct sl_bpf *bpf)
{
	if (!bpf)
		return;
	bpf_object__close(bpf->object);
	free(bpf);
}

int sl_bpf_prog_fd(const struct sl_bpf *bpf)
{
	struct bpf_program *prog = bpf_object__next_program(bpf->object, NULL);

	return prog ? bpf_program__fd(prog) : -ENOENT;
}

int sl_bpf_pin_get(const char *path)
{
	return result(bpf_obj_get(path));
}

int sl_bpf_pin_put(int fd, const char *path)
{
	return result(bpf_obj_pin(fd, path));
}

/* ---- attachment -------------------------------------------------------------------------------------------------- */

int sl_bpf_link_create(int prog_fd, int ifindex)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = XDP_FLAGS_DRV_MODE);

	return result(bpf_link_create(prog_fd, ifindex, BPF_XDP, &opts));
}

int sl_bpf_link_replace(int link_fd, int new_prog_fd, int old_prog_fd)
{
	LIBBPF_OPTS(bpf_link_update_opts, opts, .flags = BPF_F_REPLACE, .old_prog_fd = (__u32)old_prog_fd);

	return result(bpf_link_update(link_fd, new_prog_fd, &opts));
}

int sl_bpf_link_detach(int link_fd)
{
	return result(bpf_link_detach(link_fd));
}

int sl_bpf_link_info(int link_fd, struct sl_bpf_link_info *out)
{
	struct bpf_link_info info = { 0 };
	__u32 len = sizeof(info);
	int r = result(bpf_obj_get_info_by_fd(link_fd, &info, &len));

	if (r)
		return r;
	if (info.type != BPF_LINK_TYPE_XDP)
		return -EINVAL;
	out->id = info.id;
	out->prog_id = info.prog_id;
	out->ifindex = info.xdp.ifindex;
	return 0;
}

int sl_bpf_prog_get(__u32 prog_id)
{
	return result(bpf_prog_get_fd_by_id(prog_id));
}

int sl_bpf_xdp_query(int ifindex, struct sl_bpf_xdp *out)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, opts);
	int r = result(bpf_xdp_query(ifindex, 0, &opts));

	if (r)
		return r;
	out->native_id = opts.drv_prog_id;
	out->generic_id = opts.skb_prog_id;
	out->offload_id = opts.hw_prog_id;
	return 0;
}

/* ---- maps -------------------------------------------------------------------------------------------------------- */

int sl_bpf_map_create(__u32 type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags);

	return result(bpf_map_create((enum bpf_map_type)type, name, key_size, value_size, max_entries, &opts));
}

int sl_bpf_map_get(__u32 map_id)
{
	return result(bpf_map_get_fd_by_id(map_id));
}

int sl_bpf_map_info(int fd, struct sl_bpf_map_info *out)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);
	int r = result(bpf_obj_get_info_by_fd(fd, &info, &len));

	if (r)
		return r;
	out->id = info.id;
	out->type = info.type;
	out->key_size = info.key_size;
	out->value_size = info.value_size;
	out->max_entries = info.max_entries;
	out->flags = info.map_flags;
	return 0;
}

int sl_bpf_map_lookup(int fd, const void *key, void *value)
{
	return result(bpf_map_lookup_elem(fd, key, value));
}

int sl_bpf_map_update(int fd, const void *key, const void *value)
{
	return result(bpf_map_update_elem(fd, key, value, BPF_ANY));
}

int sl_bpf_map_delete(int fd, const void *key)
{
	return result(bpf_map_delete_elem(fd, key));
}

int sl_bpf_map_next_key(int fd, const void *key, void *next)
{
	return result(bpf_map_get_next_key(fd, key, next));
}

int sl_bpf_map_read(int fd, const void *token, void *next_token, void *keys, void *values, __u32 cap, int *last)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	__u32 count = cap;
	int r = result(bpf_map_lookup_batch(fd, (void *)token, next_token, keys, values, &count, &opts));

	if (r && r != -ENOENT)
		return r;
	*last = r == -ENOENT;
	return (int)count;
}

int sl_bpf_map_write(int fd, const void *keys, const void *values, __u32 count)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);

	return result(bpf_map_update_batch(fd, keys, values, &count, &opts));
}

int sl_bpf_nb_cpus(void)
{
	return libbpf_num_possible_cpus();
}

/* ---- trial runs -------------------------------------------------------------------------------------------------- */

int sl_bpf_prog_run(int prog_fd, struct sl_bpf_run *run)
{
	struct xdp_md in = {
		.data = run->meta_len, .data_end = run->data_len,
		.ingress_ifindex = run->ifindex, .rx_queue_index = run->queue,
	};
	struct xdp_md out = { 0 };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = run->data, .data_size_in = run->data_len, .data_out = run->out,
		    .data_size_out = run->out_cap, .ctx_in = &in, .ctx_size_in = sizeof(in), .ctx_out = &out,
		    .ctx_size_out = sizeof(out), .repeat = run->repeat ? (int)run->repeat : 1);
	int r = result(bpf_prog_test_run_opts(prog_fd, &opts));

	if (r)
		return r;
	run->action = opts.retval;
	run->ns = opts.duration;
	run->out_len = opts.data_size_out;
	run->out_meta_len = out.data - out.data_meta;
	return 0;
}

/* ---- bpffs ------------------------------------------------------------------------------------------------------- */

int sl_bpffs_is_mounted(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return -errno;
	return fs.f_type == BPF_FS_MAGIC;
}

int sl_bpffs_mount(const char *path)
{
	int r = sl_bpffs_is_mounted(path);

	if (r < 0)
		return r;
	if (r)
		return 0;
	return mount("bpf", path, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") ? -errno : 0;
}

int sl_bpffs_umount(const char *path)
{
	return umount2(path, UMOUNT_NOFOLLOW) ? -errno : 0;
}
