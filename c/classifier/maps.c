/* SPDX-License-Identifier: Apache-2.0 */
/* The pinned maps: opened, mapped, copied. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"
#include "classifier/private.h"

enum { PATH_CAP = 4096 };

/* libbpf's low-level calls give -errno in strict mode and -1 with errno otherwise. */
static int result(int r)
{
	return r == -1 && errno ? -errno : r;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int pin_open(const char *dir, const char *name)
{
	char path[PATH_CAP];

	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	errno = 0;
	return result(bpf_obj_get(path));
}

/* Maps an array map of so many values. */
static int array_map(int fd, uint32_t nb, size_t value_len, int prot, void *ret)
{
	struct bpf_map_info info = { 0 };
	uint32_t len = sizeof(info);
	int r = result(bpf_obj_get_info_by_fd(fd, &info, &len));
	void *at;

	if (r)
		return r;
	if (info.type != BPF_MAP_TYPE_ARRAY || !(info.map_flags & BPF_F_MMAPABLE) || info.max_entries != nb ||
	    info.value_size != value_len)
		return -EINVAL;
	at = mmap(NULL, nb * ((value_len + 7) & ~(size_t)7), prot, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return -errno;
	memcpy(ret, &at, sizeof(at));
	return 0;
}

static int pin_map(const char *dir, const char *name, uint32_t nb, size_t value_len, void *ret)
{
	int r, fd = pin_open(dir, name);

	if (fd < 0)
		return fd;
	r = array_map(fd, nb, value_len, PROT_READ, ret);
	close(fd);
	return r;
}

/* The flows of the router before, or a new, empty map. */
static int flows_open(struct sl_classifier *c, const char *dir)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_MMAPABLE);
	char path[PATH_CAP];
	int r, fd = pin_open(dir, "user_flows");

	if (fd == -ENOENT) {
		fd = result(bpf_map_create(BPF_MAP_TYPE_ARRAY, "user_flows", sizeof(uint32_t),
					   sizeof(struct sl_lru_bucket), SL_FLOW_BUCKETS, &opts));
		if (fd < 0)
			return fd;
		snprintf(path, sizeof(path), "%s/user_flows", dir);
		r = result(bpf_obj_pin(fd, path));
		if (r) {
			close(fd);
			return r;
		}
	}
	if (fd < 0)
		return fd;
	r = array_map(fd, SL_FLOW_BUCKETS, sizeof(struct sl_lru_bucket), PROT_READ | PROT_WRITE, &c->flows.lru.bucket);
	close(fd);
	return r;
}

static int counters_open(struct sl_classifier *c, const char *dir)
{
	uint32_t zero = 0, cpu, i;
	uint64_t *sum = (uint64_t *)&c->counters.value;
	int r = libbpf_num_possible_cpus();

	if (r < 0)
		return r;
	c->nb_cpu = (uint32_t)r;
	c->per_cpu = calloc(c->nb_cpu, sizeof(*c->per_cpu));
	if (!c->per_cpu)
		return -ENOMEM;
	c->counters_fd = pin_open(dir, "counters");
	if (c->counters_fd < 0)
		return c->counters_fd;
	r = result(bpf_map_lookup_elem(c->counters_fd, &zero, c->per_cpu));
	for (cpu = 0; !r && cpu < c->nb_cpu; cpu++)
		for (i = 0; i < sizeof(*c->per_cpu) / sizeof(*sum); i++)
			sum[i] += ((const uint64_t *)&c->per_cpu[cpu])[i];
	return r;
}

/* The tables that there are now. Opening a map by its id takes CAP_SYS_ADMIN. */
static int tables_open(struct sl_classifier *c, const char *dir)
{
	int fd, r = 0, outer = pin_open(dir, "maglev");
	uint32_t service, id;

	if (outer < 0)
		return outer;
	for (service = 0; !r && service < SL_SERVICE_MAX; service++) {
		if (bpf_map_lookup_elem(outer, &service, &id))
			continue;
		fd = result(bpf_map_get_fd_by_id(id));
		if (fd == -ENOENT) {        /* it was replaced between the two calls: look again */
			service--;
			continue;
		}
		r = fd < 0 ? fd : sl_classifier_table_set(c, service, fd);
		if (fd >= 0)
			close(fd);
	}
	close(outer);
	return r;
}

static int maps_open(struct sl_classifier *c, const char *dir)
{
	int r = pin_map(dir, "config", 1, sizeof(struct sl_config), &c->config.value);

	if (!r)
		r = pin_map(dir, "vms", SL_VM_MAX, sizeof(struct sl_vm), &c->vms.value);
	if (!r)
		r = flows_open(c, dir);
	if (!r)
		r = counters_open(c, dir);
	if (!r)
		r = tables_open(c, dir);
	if (r)
		return r;
	c->services_fd = pin_open(dir, "services");
	c->vips_fd = pin_open(dir, "vips");
	return sl_min(c->services_fd, sl_min(c->vips_fd, 0));
}

int sl_classifier_open(const char *pin_dir, struct sl_classifier **ret)
{
	struct sl_classifier *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->services_fd = c->vips_fd = c->counters_fd = -1;
	c->frags.lru.bucket = calloc(SL_FRAG_BUCKETS, sizeof(*c->frags.lru.bucket));
	c->frags.lru.nb_bucket = SL_FRAG_BUCKETS;
	c->flows.lru.nb_bucket = SL_FLOW_BUCKETS;
	r = c->frags.lru.bucket ? maps_open(c, pin_dir) : -ENOMEM;
	if (r) {
		sl_classifier_close(c);
		return r;
	}
	/* not the seed of the Maglev tables itself: one says nothing of the other */
	c->flows.lru.seed = c->frags.lru.seed = c->config.value->hash_seed * 0xd6e8feb86659fd93ull;
	*ret = c;
	return 0;
}

static void unmap(const void *at, size_t len)
{
	if (at)
		munmap((void *)(uintptr_t)at, len);
}

void sl_classifier_close(struct sl_classifier *c)
{
	uint32_t service;

	if (!c)
		return;
	for (service = 0; service < SL_SERVICE_MAX; service++)
		unmap(c->maglev.value[service], sizeof(struct sl_maglev));
	unmap(c->config.value, sizeof(struct sl_config));
	unmap(c->vms.value, SL_VM_MAX * sizeof(struct sl_vm));
	unmap(c->flows.lru.bucket, SL_FLOW_BUCKETS * sizeof(struct sl_lru_bucket));
	free(c->frags.lru.bucket);
	free(c->per_cpu);
	if (c->services_fd >= 0)
		close(c->services_fd);
	if (c->vips_fd >= 0)
		close(c->vips_fd);
	if (c->counters_fd >= 0)
		close(c->counters_fd);
	free(c);
}

/* ---- what changes ------------------------------------------------------------------------------------------------ */

void sl_classifier_queues_set(struct sl_classifier *c, uint64_t queues)
{
	c->xsks.queues = queues;
}

int sl_classifier_table_set(struct sl_classifier *c, uint32_t service, int fd)
{
	const struct sl_maglev *table = NULL;
	int r;

	if (service >= SL_SERVICE_MAX)
		return -EINVAL;
	r = array_map(fd, 1, sizeof(*table), PROT_READ, &table);
	if (r)
		return r;
	unmap(c->maglev.value[service], sizeof(*table));
	c->maglev.value[service] = table;
	return 0;
}

/* Copies a hash map. Something that is written meanwhile comes with the next generation. */
static int copy_read(struct sl_copy *t, int fd, size_t key_len, size_t value_len)
{
	uint8_t keys[SL_COPY_MAX * SL_COPY_KEY_LEN], values[SL_COPY_MAX * SL_COPY_VALUE_LEN];
	uint64_t words[SL_COPY_KEY_LEN / 8] = { 0 };
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	uint32_t count = SL_COPY_MAX, i;
	struct sl_copy_slot *s;
	uint64_t next;
	/* as many as the map can hold: one call reads all */
	int r = result(bpf_map_lookup_batch(fd, NULL, &next, keys, values, &count, &opts));

	if (r && r != -ENOENT)
		return r;
	memset(t, 0, sizeof(*t));
	for (i = 0; i < count; i++) {
		s = sl_copy_slot(t, keys + i * key_len, key_len);
		memcpy(words, keys + i * key_len, key_len);
		memcpy(s->key, words, sizeof(words));
		memcpy(s->value, values + i * value_len, value_len);
		s->is_used = 1;
	}
	return 0;
}

/* A flow of a service that is gone is the kernel's from now on, or nobody's. */
static void flows_sweep(struct sl_classifier *c)
{
	struct sl_lru_bucket *b;
	struct sl_flow_key key;
	uint32_t n, i;

	for (n = 0; n < c->flows.lru.nb_bucket; n++) {
		b = &c->flows.lru.bucket[n];
		for (i = 0; i < SL_LRU_WAYS; i++) {
			struct sl_service_key k = { 0 };

			if (!b->tag[i])
				continue;
			memcpy(&key, b->place[i].key, sizeof(key));
			memcpy(k.addr, key.dst, sizeof(k.addr));
			k.port = key.dport;
			k.proto = key.proto;
			if (!sl_copy_find(&c->services.copy, &k, sizeof(k)))
				b->tag[i] = 0;
		}
	}
}

void sl_classifier_turn(struct sl_classifier *c, uint64_t now_ns)
{
	uint32_t generation = sl_observe_u32(&c->config.value->generation);

	c->flows.lru.now = c->frags.lru.now = (uint32_t)(now_ns >> SL_TICK_SHIFT);
	if (sl_likely(c->is_copied && generation == c->generation))
		return;
	if (copy_read(&c->services.copy, c->services_fd, sizeof(struct sl_service_key), sizeof(struct sl_service)) ||
	    copy_read(&c->vips.copy, c->vips_fd, sizeof(struct sl_vip_key), sizeof(struct sl_vip)))
		return;   /* with what it knows, until the next turn */
	flows_sweep(c);
	c->generation = generation;
	c->is_copied = true;
}

void sl_classifier_forget(struct sl_classifier *c)
{
	memset(c->flows.lru.bucket, 0, SL_FLOW_BUCKETS * sizeof(*c->flows.lru.bucket));
	memset(c->frags.lru.bucket, 0, SL_FRAG_BUCKETS * sizeof(*c->frags.lru.bucket));
}

/* ---- counters ---------------------------------------------------------------------------------------------------- */

const struct sl_counters *sl_classifier_counters(const struct sl_classifier *c)
{
	return &c->counters.value;
}

/* All in the place of the first CPU: readers add them up. */
int sl_classifier_publish(struct sl_classifier *c)
{
	uint32_t zero = 0;

	memset(c->per_cpu, 0, c->nb_cpu * sizeof(*c->per_cpu));
	c->per_cpu[0] = c->counters.value;
	errno = 0;
	return result(bpf_map_update_elem(c->counters_fd, &zero, c->per_cpu, BPF_ANY));
}
