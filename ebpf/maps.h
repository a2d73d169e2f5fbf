/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The classifier's maps. Keys, values, writers and pins: c/abi/classifier.h. A changed definition needs a new
 * SL_ABI_VERSION, because a map that is pinned already is reused only if it is the same. */
#ifndef SL_MAPS_H
#define SL_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi/classifier.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);   /* for the classifier in user space */
	__type(key, __u32);
	__type(value, struct sl_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SL_SERVICE_KEYS_MAX);
	__type(key, struct sl_service_key);
	__type(value, struct sl_service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SL_VIP_MAX);
	__type(key, struct sl_vip_key);
	__type(value, struct sl_vip);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SL_VM_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct sl_vm);
} vms SEC(".maps");

/* One value, so that the manager can fill it by one copy into its mapping. */
struct sl_maglev_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct sl_maglev));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SL_SERVICE_MAX);
	__type(key, __u32);
	__array(values, struct sl_maglev_map);
} maglev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SL_FLOW_MAX);
	__type(key, struct sl_flow_key);
	__type(value, struct sl_flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SL_FRAG_MAX);
	__type(key, struct sl_frag_key);
	__type(value, struct sl_frag);
} frags SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sl_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, SL_QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

#endif
