/* SPDX-License-Identifier: Apache-2.0 */
/* What an entry of a hostile peer must be. Works on private copies. */
#include "base/base.h"
#include "edge/entry.h"

enum { FLAGS_KNOWN = SL_F_FIN | SL_F_TRACE | SL_F_MOVE };

/* The sender's arena: all that its entries may point into. */
static uint64_t peer_arena(const struct sl_link *l)
{
	const struct sl_edge *e = l->edge;
	unsigned peer = e->side == SL_FRONT ? e->g.nb_front + l->slot : l->slot;

	return e->g.arenas_off + peer * e->g.arena_len;
}

static bool payload_inside(const struct sl_link *l, const struct sl_request_packet *p)
{
	const struct sl_region *g = &l->edge->g;
	uint64_t lo = peer_arena(l), end = (uint64_t)p->offset + p->length;

	return p->length <= g->big_len && p->offset >= lo && end <= lo + g->arena_len;
}

/* Returns SL_CNT_MAX if the entry is as the contract wants it. Its epoch and lap are known to be right. */
static enum sl_counter packet_check(const struct sl_link *l, const struct sl_request_packet *p)
{
	const struct sl_edge *e = l->edge;
	bool has_data = (p->op <= SL_OP_DATA || p->op >= SL_OP_STATE) && p->length;

	if (p->op < SL_OP_OPEN || p->op > SL_OP_RESUMED || (p->flags & ~FLAGS_KNOWN) || p->status > SL_ERROR_CLIENT)
		return SL_CNT_BAD_OP;
	if (p->protocol_layer != e->layer || p->next_vm_id != e->vm_id)
		return SL_CNT_BAD_LAYER;
	if (has_data && !payload_inside(l, p))
		return SL_CNT_BAD_OFFSET;
	return SL_CNT_MAX;
}

/* True if every entry of a burst is good and of the common kind: DATA or OPEN without a status. One branch for all of
 * them; it is stricter than packet_check, which decides when this says no. */
static bool burst_plain(const struct sl_link *l, const struct sl_request_packet *p, uint32_t nb)
{
	const struct sl_edge *e = l->edge;
	const uint64_t want2 = SL_BITS(next_vm_id, e->vm_id), want3 = SL_BITS(protocol_layer, e->layer);
	const uint64_t fixed2 = SL_BITS(next_vm_id, 0xffff) | SL_BITS(status, 0xffff);
	const uint64_t fixed3 = SL_BITS(flags, (uint8_t)~FLAGS_KNOWN) | SL_BITS(protocol_layer, 0xff);
	uint64_t lo = peer_arena(l), arena_len = e->g.arena_len, big_len = e->g.big_len, odd = 0;

	for (uint32_t i = 0; i < nb; i++) {
		const struct sl_entry *v = (const void *)&p[i];
		uint64_t off = (uint32_t)v->w[1] - lo, len = v->w[1] >> 32;   /* below lo: off wraps to more than arena_len */

		odd |= (v->w[2] ^ want2) & fixed2;
		odd |= (v->w[3] ^ want3) & fixed3;
		odd |= ((v->w[3] >> 56) - SL_OP_OPEN) >> 1;                  /* op is neither OPEN nor DATA */
		odd |= len && (len > big_len || off > arena_len || len > arena_len - off);
	}
	return !odd;
}

uint32_t sl_entries_check(const struct sl_link *l, const struct sl_request_packet *p, uint32_t nb,
			  enum sl_counter *why)
{
	if (sl_likely(burst_plain(l, p, nb)))
		return nb;
	for (uint32_t i = 0; i < nb; i++) {
		*why = packet_check(l, &p[i]);
		if (*why != SL_CNT_MAX)
			return i;
	}
	return nb;
}
