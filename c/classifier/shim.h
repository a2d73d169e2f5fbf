/* SPDX-License-Identifier: Apache-2.0 */
/* What the BPF program finds in the kernel, for a build in user space: the context, the helpers and the maps. It stands
 * in place of <bpf/bpf_helpers.h> and ebpf/maps.h, whose guards it takes. Included by program.c alone. */
#ifndef SL_CLASSIFIER_SHIM_H
#define SL_CLASSIFIER_SHIM_H

#include <linux/bpf.h>

#include "classifier/private.h"

#define __BPF_HELPERS__
#define SL_MAPS_H

#define SEC(name)
#define __noinline __attribute__((noinline))
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define barrier_var(var) ((void)(var))   /* holds the compiler back where the verifier would not follow it */

/* ---- context ----------------------------------------------------------------------------------------------------- */

/* The kernel's struct xdp_md has 32-bit words, which the verifier makes pointers of. */
struct sl_frame_context {
	uintptr_t data, data_end, data_meta;
	uint32_t rx_queue_index;
	uint32_t buff_len;
	struct sl_meta *meta;
};
#define xdp_md sl_frame_context

static inline uint64_t bpf_xdp_get_buff_len(const struct sl_frame_context *ctx)
{
	return ctx->buff_len;
}

/* The verdict goes where the caller wants it, which need not be in front of the frame. The frame is done with: what
 * follows the metadata counts as its start. */
static inline long bpf_xdp_adjust_meta(struct sl_frame_context *ctx, int delta)
{
	(void)delta;
	ctx->data_meta = (uintptr_t)ctx->meta;
	ctx->data = ctx->data_meta + sizeof(*ctx->meta);
	return 0;
}

static inline uint64_t bpf_ktime_get_ns(void)
{
	return sl_now_ns();
}

/* ---- maps -------------------------------------------------------------------------------------------------------- */

/* The program names its maps as globals. They are those of the classifier that runs on this thread. */
static _Thread_local struct sl_classifier *sl_running;

#define config (sl_running->config)
#define services (sl_running->services)
#define vips (sl_running->vips)
#define vms (sl_running->vms)
#define maglev (sl_running->maglev)
#define flows (sl_running->flows)
#define frags (sl_running->frags)
#define counters (sl_running->counters)
#define xsks (sl_running->xsks)

static inline void *sl_config_find(struct sl_map_config *m, const void *key)
{
	(void)key;
	return (void *)(uintptr_t)m->value;
}

static inline void *sl_vm_find(struct sl_map_vms *m, const void *key)
{
	uint32_t vm_id = *(const uint32_t *)key;

	return vm_id < SL_VM_MAX ? (void *)(uintptr_t)&m->value[vm_id] : NULL;
}

static inline void *sl_service_find(struct sl_map_services *m, const void *key)
{
	return sl_copy_find(&m->copy, key, sizeof(struct sl_service_key));
}

static inline void *sl_vip_find(struct sl_map_vips *m, const void *key)
{
	return sl_copy_find(&m->copy, key, sizeof(struct sl_vip_key));
}

static inline void *sl_table_find(struct sl_map_maglev *m, const void *key)
{
	uint32_t service = *(const uint32_t *)key;

	return service < SL_SERVICE_MAX ? (void *)(uintptr_t)m->value[service] : NULL;
}

/* The inner map of maglev: one value, which is what was found already. */
static inline void *sl_inner_find(void *table, const void *key)
{
	(void)key;
	return table;
}

static inline void *sl_flow_find(struct sl_map_flows *m, const void *key)
{
	return sl_lru_find(&m->lru, key);
}

static inline void *sl_frag_find(struct sl_map_frags *m, const void *key)
{
	return sl_lru_find(&m->lru, key);
}

static inline void *sl_counters_find(struct sl_map_counters *m, const void *key)
{
	(void)key;
	return &m->value;
}

static inline void *sl_queue_find(struct sl_map_xsks *m, const void *key)
{
	uint32_t queue = *(const uint32_t *)key;

	return queue < SL_QUEUES_MAX && m->queues >> queue & 1 ? m : NULL;
}

#define bpf_map_lookup_elem(map, key) _Generic((map), \
	struct sl_map_config *: sl_config_find, \
	struct sl_map_services *: sl_service_find, \
	struct sl_map_vips *: sl_vip_find, \
	struct sl_map_vms *: sl_vm_find, \
	struct sl_map_maglev *: sl_table_find, \
	void *: sl_inner_find, \
	struct sl_map_flows *: sl_flow_find, \
	struct sl_map_frags *: sl_frag_find, \
	struct sl_map_counters *: sl_counters_find, \
	struct sl_map_xsks *: sl_queue_find)(map, key)

static inline void sl_flow_put(struct sl_map_flows *m, const void *key, const void *value)
{
	sl_lru_put(&m->lru, key, value, sizeof(struct sl_flow));
}

static inline void sl_frag_put(struct sl_map_frags *m, const void *key, const void *value)
{
	sl_lru_put(&m->lru, key, value, sizeof(struct sl_frag));
}

#define bpf_map_update_elem(map, key, value, flags) _Generic((map), \
	struct sl_map_flows *: sl_flow_put, \
	struct sl_map_frags *: sl_frag_put)(map, key, value)

#define bpf_redirect_map(map, key, flags) ((void)(map), XDP_REDIRECT)

#endif
