/* SPDX-License-Identifier: Apache-2.0 */
/* libbpf as the control plane needs it: plain functions, no option structs, one error idiom.
 *
 * Every function returns 0 (or a file descriptor, or a count where it says so), or -errno. A descriptor that is
 * returned belongs to the caller. No function prints: what libbpf says while an object is loaded goes into the
 * caller's buffer. All calls may block for some milliseconds (the kernel waits for running programs); none keeps
 * state, except that libbpf's one print hook is taken. Threads: any, but one struct sl_bpf is used by one thread at
 * a time. */
#ifndef SL_LOADER_H
#define SL_LOADER_H

#include <linux/types.h>

/* A loaded BPF object with one program. */
struct sl_bpf;

struct sl_bpf_map_info {
	__u32 id;
	__u32 type;          /* enum bpf_map_type */
	__u32 key_size;      /* bytes */
	__u32 value_size;    /* bytes; a per-CPU map gives one, rounded up to 8, for each possible CPU */
	__u32 max_entries;
	__u32 flags;
};

struct sl_bpf_link_info {
	__u32 id;
	__u32 prog_id;
	__u32 ifindex;       /* 0: the interface is gone, the link is dead */
};

/* What XDP programs an interface has. */
struct sl_bpf_xdp {
	__u32 native_id;     /* program id in native (driver) mode, 0 = none */
	__u32 generic_id;
	__u32 offload_id;
};

/* One run of a program over one packet (BPF_PROG_TEST_RUN). */
struct sl_bpf_run {
	const void *data;    /* metadata, then the packet */
	__u32 data_len;      /* bytes, both */
	__u32 meta_len;      /* bytes of metadata; 0 as on most drivers */
	void *out;
	__u32 out_cap;       /* bytes of room */
	__u32 out_len;       /* result: bytes written, metadata and packet */
	__u32 out_meta_len;  /* result: how many of them are metadata */
	__u32 ifindex;       /* 0: the loopback interface of the current network namespace */
	__u32 queue;         /* rx_queue_index; must exist on the interface */
	__u32 repeat;        /* 0 = 1 */
	__u32 action;        /* result: XDP_DROP, XDP_PASS ... */
	__u32 ns;            /* result: mean time of one run, nanoseconds */
};

/* Open and load the object file. A map without a dot in its name is taken from pin_dir (a folder on a bpffs) if it
 * is pinned there, else made and pinned; pin_dir NULL pins nothing. log receives libbpf's messages, cut to log_cap
 * with a terminating zero. -EINVAL: not such an object, or a pinned map has another form; -EPERM: no right to load
 * BPF; -ENOENT: no such file. On error maps may have been pinned already. Close with sl_bpf_close(): pinned maps,
 * links and programs in use outlive it. */
int sl_bpf_open(const char *path, const char *pin_dir, char *log, __u32 log_cap, struct sl_bpf **out);
void sl_bpf_close(struct sl_bpf *bpf);

/* The object's program. The descriptor belongs to bpf. -ENOENT: it has none. */
int sl_bpf_prog_fd(const struct sl_bpf *bpf);

/* Open a pin: a new descriptor. -ENOENT: there is no such pin. */
int sl_bpf_pin_get(const char *path);
int sl_bpf_pin_put(int fd, const char *path);

/* Attach the program to the interface of the current network namespace, in native mode only. Returns a link; the
 * program stays as long as the link or a pin of it. -EBUSY: it has an XDP program already; -EOPNOTSUPP: its driver
 * has no native XDP; -ENODEV. */
int sl_bpf_link_create(int prog_fd, int ifindex);
/* Put new_prog_fd in old_prog_fd's place, between two packets. -EPERM: old_prog_fd is not what runs there now. */
int sl_bpf_link_replace(int link_fd, int new_prog_fd, int old_prog_fd);
/* Take the program off the interface, pins or not. */
int sl_bpf_link_detach(int link_fd);
int sl_bpf_link_info(int link_fd, struct sl_bpf_link_info *out);
int sl_bpf_prog_get(__u32 prog_id);
int sl_bpf_xdp_query(int ifindex, struct sl_bpf_xdp *out);

/* Maps. key and value point to as many bytes as sl_bpf_map_info() says. */
int sl_bpf_map_create(__u32 type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags);
int sl_bpf_map_get(__u32 map_id);
int sl_bpf_map_info(int fd, struct sl_bpf_map_info *out);
int sl_bpf_map_lookup(int fd, const void *key, void *value);
int sl_bpf_map_update(int fd, const void *key, const void *value);
int sl_bpf_map_delete(int fd, const void *key);
/* key NULL: the first. -ENOENT: key was the last. */
int sl_bpf_map_next_key(int fd, const void *key, void *next);
/* Several entries from where token (8 bytes) points, NULL for the first time; next_token points behind them. Returns
 * how many were read, at most cap; *last is 1 when there are no more. */
int sl_bpf_map_read(int fd, const void *token, void *next_token, void *keys, void *values, __u32 cap, int *last);
int sl_bpf_map_write(int fd, const void *keys, const void *values, __u32 count);

/* Possible CPUs: values in one lookup of a per-CPU map. */
int sl_bpf_nb_cpus(void);

/* Run prog_fd over run->data. -ENOSPC: the packet did not fit into out. */
int sl_bpf_prog_run(int prog_fd, struct sl_bpf_run *run);

/* A bpffs of our own, readable by root alone. mount: 0 as well if one is mounted there already. -EPERM, -ENOENT (no
 * such folder). umount: the pins in it go. is_mounted: 1 or 0. */
int sl_bpffs_mount(const char *path);
int sl_bpffs_umount(const char *path);
int sl_bpffs_is_mounted(const char *path);

#endif
