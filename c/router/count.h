/* SPDX-License-Identifier: Apache-2.0 */
/* The router's counters: private numbers that the loop adds to, and their publication in the memfd that the manager
 * reads. */
#ifndef SL_COUNT_H
#define SL_COUNT_H

#include "abi/router.h"
#include "base/base.h"

struct sl_count {
	uint64_t total[SL_RTR_COUNTER_CAP];
	struct sl_rtr_port port[SL_VM_MAX];
	struct sl_rtr_counters *shared;          /* NULL: nobody reads (tests) */
	uint32_t nb_dirty;
	uint16_t dirty[SL_VM_MAX];               /* ports whose numbers changed since the last commit, each once */
	bool is_dirty[SL_VM_MAX];
};

static inline void sl_count_add(struct sl_count *c, enum sl_rtr_counter which, uint64_t n)
{
	c->total[which] += n;
}

/* The numbers of one port, to be changed. */
static inline struct sl_rtr_port *sl_count_port(struct sl_count *c, uint16_t vm_id)
{
	if (!c->is_dirty[vm_id]) {
		c->is_dirty[vm_id] = true;
		c->dirty[c->nb_dirty++] = vm_id;
	}
	return &c->port[vm_id];
}

/* Takes over what a former router counted, and makes the header valid. shared is writable and complete. */
static inline void sl_count_attach(struct sl_count *c, struct sl_rtr_counters *shared, uint32_t pid, uint64_t start_ns)
{
	memset(c, 0, sizeof(*c));
	if (shared->magic == SL_RTR_COUNTERS_MAGIC && shared->version == SL_ABI_VERSION) {
		memcpy(c->total, shared->total, sizeof(c->total));
		memcpy(c->port, shared->port, sizeof(c->port));
	}
	c->shared = shared;
	shared->version = SL_ABI_VERSION;
	shared->nb_counter = SL_RTR_COUNTER_NB;
	shared->pid = pid;
	shared->start_ns = start_ns;
	/* a reader that sees the magic must see the header that it vouches for */
	__atomic_store_n(&shared->magic, SL_RTR_COUNTERS_MAGIC, __ATOMIC_RELEASE);
}

/* Publishes. Each number is whole for its reader; two numbers may be from different turns, so the order of stores means
 * nothing. */
static inline void sl_count_commit(struct sl_count *c)
{
	const uint64_t *from;
	uint64_t *to;
	uint32_t i, f;

	if (c->shared)
		for (i = 0; i < SL_RTR_COUNTER_NB; i++)
			__atomic_store_n(&c->shared->total[i], c->total[i], __ATOMIC_RELAXED);
	for (i = 0; i < c->nb_dirty; i++) {
		c->is_dirty[c->dirty[i]] = false;
		if (!c->shared)
			continue;
		from = (const uint64_t *)&c->port[c->dirty[i]];
		to = (uint64_t *)&c->shared->port[c->dirty[i]];
		for (f = 0; f < sizeof(struct sl_rtr_port) / sizeof(*to); f++)
			__atomic_store_n(&to[f], from[f], __ATOMIC_RELAXED);
	}
	c->nb_dirty = 0;
}

#endif
