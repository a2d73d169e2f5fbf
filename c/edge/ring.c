/* SPDX-License-Identifier: Apache-2.0 */
/* Rings, completions and payload slots: the fast path. No allocation, no system call but the doorbell. */
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/fault.h"
#include "edge/edge.h"

enum { FLAGS_KNOWN = SL_F_FIN | SL_F_TRACE };

/* --- slots of the own arena --- */

int sl_buf_alloc(struct sl_edge *e, uint32_t len, struct sl_buf *buf)
{
	bool small = (len <= e->g.small_len && e->nb_free_small) || !e->nb_free_big;

	if (small && !e->nb_free_small) {
		e->ops->count(e, SL_CNT_ARENA_EMPTY);
		return -EAGAIN;
	}
	if (small) {
		buf->offset = e->arena_off + e->free_small[--e->nb_free_small] * e->g.small_len;
		buf->cap = e->g.small_len;
	} else {
		buf->offset = e->arena_off + e->g.nb_small * e->g.small_len + e->free_big[--e->nb_free_big] * e->g.big_len;
		buf->cap = e->g.big_len;
	}
	buf->data = e->base + buf->offset;
	return 0;
}

void sl_buf_free(struct sl_edge *e, struct sl_buf *buf)
{
	uint32_t off = buf->offset - e->arena_off, small = e->g.nb_small * e->g.small_len;

	if (off < small)
		e->free_small[e->nb_free_small++] = (uint16_t)(off / e->g.small_len);
	else
		e->free_big[e->nb_free_big++] = (uint16_t)((off - small) / e->g.big_len);
}

/* --- sending --- */

/* An entry as four words, so that it is filled in and checked without a branch for each field. They are little
 * endian. */
struct words {
	uint64_t w[sizeof(struct sl_request_packet) / 8];
} __attribute__((may_alias));

/* Value v of a field, in the word where it lies */
#define BITS(field, v) ((uint64_t)(v) << 8 * (offsetof(struct sl_request_packet, field) % 8))

/* The receiver has read these lines a round ago: asks for them back before they are written. Without it each store
 * waits in turn for its line to come from the other core. */
static inline void line_claim(const void *line)
{
#if defined(__x86_64__)
	/* the builtin would only ask to read on the baseline; a core without the instruction ignores it */
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
	__builtin_prefetch(line, 1);
#endif
}

static void next_lines_claim(const struct sl_link *l)
{
	uint32_t nb = sl_min((uint32_t)SL_BURST, sl_link_room(l)), mask = l->edge->g.ring_cap - 1;

	for (uint32_t i = 0; i < nb; i += SL_CACHELINE / sizeof(*l->tx.entries))
		line_claim(&l->tx.entries[(l->tx.prod + i) & mask]);
}

uint32_t sl_route_burst(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *bufs, uint32_t nb)
{
	const uint64_t keep1 = BITS(length, ~0u), keep2 = BITS(flow_id, ~0u);
	const uint64_t keep3 = BITS(flags, 0xffff) | BITS(status, 0xffff) | BITS(op, 0xff);
	const uint64_t put2 = BITS(epoch, l->edge->incarnation);
	const uint64_t put3 = BITS(next_vm_id, l->vm_id) | BITS(protocol_layer, l->edge->peer_layer);
	uint32_t mask = l->edge->g.ring_cap - 1, prod = l->tx.prod, room = sl_link_room(l), n = sl_min(nb, room);
	uint32_t *sent = l->tx.sent;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t at = (prod + i) & mask, off = bufs ? bufs[i].offset : 0;
		const struct words *from = (const void *)&p[i];
		struct words *entry = (void *)&l->tx.entries[at];

		entry->w[0] = from->w[0];
		entry->w[1] = (from->w[1] & keep1) | off;
		entry->w[2] = (from->w[2] & keep2) | put2;
		entry->w[3] = (from->w[3] & keep3) | put3;
		sent[at] = off | SL_SENT_OPEN;
	}
	SL_FAULT("send: entries written");
	l->tx.prod = prod + n;
	if (sl_unlikely(n < nb))
		l->edge->ops->count(l->edge, SL_CNT_RING_FULL);
	return n;
}

int sl_route_request(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *buf, uint32_t *seq)
{
	if (seq)
		*seq = l->tx.prod;
	return sl_route_burst(l, p, buf, 1) ? 0 : -EAGAIN;
}

static void run_flush(struct sl_link *l)
{
	struct sl_rx *rx = &l->rx;

	if (!rx->run.count)
		return;
	rx->completions[rx->cprod & (l->edge->g.ring_cap - 1)] = rx->run;
	SL_FAULT("complete: written");
	rx->cprod++;
	rx->run.count = 0;
}

void sl_link_complete(struct sl_link *l, uint32_t seq, uint32_t count, enum sl_request_status status)
{
	struct sl_completion *run = &l->rx.run;

	if (run->count && (run->seq + run->count != seq || run->status != status || run->count + count > l->edge->g.ring_cap))
		run_flush(l);
	if (!run->count)
		*run = (struct sl_completion){.seq = seq, .status = (uint16_t)status};
	run->count = (uint16_t)(run->count + count);
}

/* Makes visible what was written since; says what the peer may want to be woken for. Entries first: they are waited
 * for. */
static uint32_t link_publish(struct sl_link *l)
{
	uint32_t news = 0;

	if (l->tx.published != l->tx.prod) {
		/* the receiver must see the entries and their payload before it sees prod, or it reads the last
		 * round's */
		sl_publish_u32(&l->tx.ring->prod, l->tx.prod);
		l->tx.published = l->tx.prod;
		SL_FAULT("send: published");
		news |= SL_SLEEP_ENTRIES;
	}
	run_flush(l);
	if (l->rx.cpublished != l->rx.cprod) {
		/* the sender may reuse the slots at once: all our reads of them must be done before it sees cprod */
		sl_publish_u32(&l->rx.ring->cprod, l->rx.cprod);
		l->rx.cpublished = l->rx.cprod;
		SL_FAULT("complete: published");
		news |= SL_SLEEP_COMPLETIONS;
	}
	return news;
}

bool sl_link_ring(const struct sl_link *l)
{
	uint64_t one = 1;

	if (l->edge->ops->ring)
		return l->edge->ops->ring(l->edge, l->vm_id);
	/* a full counter (EAGAIN) means that it has been rung already */
	return write(l->doorbell, &one, sizeof(one)) == sizeof(one);
}

uint32_t sl_signal_vm(struct sl_edge *e)
{
	uint32_t rung = 0, news[SL_SIDE_MAX], any = 0;

	for (unsigned i = 0; i < e->nb_up; i++)
		any |= news[i] = link_publish(e->up[i]);
	if (!any)
		return 0;
	/* publish, then look whether the receiver sleeps: the mirror of sl_edge_sleep_set. One fence for all links. */
	sl_full_fence();
	SL_FAULT("signal: before doorbells");
	for (unsigned i = 0; i < e->nb_up; i++) {
		const struct sl_link *l = e->up[i];

		if (news[i] & SL_SLEEP_ENTRIES)
			next_lines_claim(l);
		if (!(news[i] & sl_peek_u32(&l->peer->sleeping)) || l->doorbell < 0)
			continue;
		if (sl_link_ring(l))
			rung++;
		SL_FAULT("signal: doorbell rung");
		e->ops->count(e, SL_CNT_DOORBELLS);
	}
	return rung;
}

/* --- receiving --- */

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

/* Returns SL_CNT_MAX if the entry is as the contract wants it. */
static enum sl_counter packet_check(const struct sl_link *l, const struct sl_request_packet *p)
{
	const struct sl_edge *e = l->edge;
	bool has_data = (p->op == SL_OP_DATA || p->op == SL_OP_OPEN) && p->length;

	if (p->epoch != l->incarnation)   /* left by a former owner of the slot */
		return SL_CNT_STALE_EPOCH;
	if (p->op < SL_OP_OPEN || p->op > SL_OP_DRAIN || (p->flags & ~FLAGS_KNOWN) || p->status > SL_ERROR_CLIENT)
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
	const uint64_t want2 = BITS(epoch, l->incarnation);
	const uint64_t want3 = BITS(next_vm_id, e->vm_id) | BITS(protocol_layer, e->layer);
	const uint64_t fixed2 = BITS(epoch, ~0u);
	const uint64_t fixed3 = BITS(next_vm_id, 0xffff) | BITS(flags, (uint16_t)~FLAGS_KNOWN) | BITS(status, 0xffff) |
				BITS(protocol_layer, 0xff);
	uint64_t lo = peer_arena(l), arena_len = e->g.arena_len, big_len = e->g.big_len, odd = 0;

	for (uint32_t i = 0; i < nb; i++) {
		const struct words *v = (const void *)&p[i];
		uint64_t off = (uint32_t)v->w[1] - lo, len = v->w[1] >> 32;   /* below lo: off wraps to more than arena_len */

		odd |= (v->w[2] ^ want2) & fixed2;
		odd |= (v->w[3] ^ want3) & fixed3;
		odd |= ((v->w[3] >> 56) - SL_OP_OPEN) >> 1;                  /* op is neither OPEN nor DATA */
		odd |= len && (len > big_len || off > arena_len || len > arena_len - off);
	}
	return !odd;
}

static uint64_t rx_pair(const struct sl_link *l)
{
	return (uint64_t)l->incarnation << 32 | l->edge->incarnation;
}

/* How many entries wait: 0 also when the ring is not up for this pairing. */
static uint32_t rx_waiting(struct sl_link *l)
{
	const struct sl_ring *ring = l->rx.ring;
	uint32_t nb;

	/* pair before prod: a prod of an earlier pairing would show us entries of the slot's former owner */
	if (sl_unlikely(sl_observe_u64(&ring->prod_pair) != rx_pair(l)))
		return 0;
	nb = sl_observe_u32(&ring->prod) - l->rx.cons;
	if (sl_likely(nb <= l->edge->g.ring_cap))
		return nb;
	/* a new owner of the slot may have begun just now; its link comes with the next route page */
	if (sl_observe_u64(&ring->prod_pair) == rx_pair(l))
		sl_link_quarantine(l, SL_CNT_BAD_INDEX);
	return 0;
}

/* How many of the copied entries are good, from the first on; a bad one shuts the peer out. */
static uint32_t burst_check(struct sl_link *l, const struct sl_request_packet *p, uint32_t nb)
{
	if (sl_likely(burst_plain(l, p, nb)))
		return nb;
	for (uint32_t i = 0; i < nb; i++) {
		enum sl_counter why = packet_check(l, &p[i]);

		if (why == SL_CNT_MAX)
			continue;
		sl_link_quarantine(l, why);   /* nothing behind it can be trusted either */
		return i;
	}
	return nb;
}

/* Takes nb of the `waiting` entries out, and has the next ones brought here while these are worked on. */
static void entries_copy(const struct sl_link *l, struct sl_request_packet *p, uint32_t nb, uint32_t waiting)
{
	const struct sl_request_packet *entries = l->rx.entries;
	uint32_t mask = l->edge->g.ring_cap - 1, cons = l->rx.cons;

	for (uint32_t i = nb; i < sl_min(nb + SL_BURST, waiting); i += SL_CACHELINE / sizeof(*p))
		__builtin_prefetch(&entries[(cons + i) & mask]);
	for (uint32_t i = 0; i < nb; i++)
		sl_copy_once(&p[i], &entries[(cons + i) & mask]);
	sl_copied_once();
	SL_FAULT("receive: copied");
}

uint32_t sl_link_recv(struct sl_link *l, struct sl_request_packet *p, uint32_t max, uint32_t *seq)
{
	uint32_t nb, waiting;

	if (sl_unlikely(l->quarantined || !l->incarnation))
		return 0;
	waiting = rx_waiting(l);
	nb = sl_min(waiting, max);
	if (!nb)
		return 0;
	*seq = l->rx.cons;
	entries_copy(l, p, nb, waiting);
	l->rx.cons += nb;
	/* who looks at cons after our death must not take an entry for pending whose work we had begun */
	sl_publish_u32(&l->rx.ring->cons, l->rx.cons);
	SL_FAULT("receive: taken");
	return burst_check(l, p, nb);
}

/* --- completions --- */

static bool completion_apply(struct sl_link *l, const struct sl_completion *c)
{
	struct sl_edge *e = l->edge;
	uint32_t mask = e->g.ring_cap - 1, window = l->tx.published - l->tx.oldest, first = c->seq - l->tx.oldest;

	if (!c->count || first >= window || c->count > window - first || c->status < SL_COMPLETED || c->status > SL_ERROR_CLIENT)
		return false;
	for (uint32_t i = 0; i < c->count; i++) {
		uint32_t *sent = &l->tx.sent[(c->seq + i) & mask];
		struct sl_buf buf = {.offset = *sent & ~(uint32_t)SL_SENT_OPEN};

		if (sl_unlikely(!*sent))
			return false;
		*sent = 0;
		if (buf.offset)
			sl_buf_free(e, &buf);
	}
	if (!first)
		l->tx.oldest += c->count;
	return true;
}

uint32_t sl_link_reap(struct sl_link *l)
{
	struct sl_edge *e = l->edge;
	uint64_t pair = (uint64_t)e->incarnation << 32 | l->incarnation;
	uint32_t nb, before = l->tx.oldest;

	/* pair before cprod, as in rx_waiting */
	if (sl_unlikely(l->quarantined || !l->incarnation || sl_observe_u64(&l->tx.ring->cons_pair) != pair))
		return 0;
	nb = sl_observe_u32(&l->tx.ring->cprod) - l->tx.cprod;
	if (nb > e->g.ring_cap) {
		if (sl_observe_u64(&l->tx.ring->cons_pair) == pair)
			sl_link_quarantine(l, SL_CNT_BAD_COMPLETION);
		return 0;
	}
	for (; nb; nb--, l->tx.cprod++) {
		struct sl_completion c;

		sl_copy_once(&c, &l->tx.completions[l->tx.cprod & (e->g.ring_cap - 1)]);
		sl_copied_once();
		if (!completion_apply(l, &c)) {
			sl_link_quarantine(l, SL_CNT_BAD_COMPLETION);
			break;
		}
	}
	while (l->tx.oldest != l->tx.published && !l->tx.sent[l->tx.oldest & (e->g.ring_cap - 1)])
		l->tx.oldest++;
	SL_FAULT("reap: slots back");
	return l->tx.oldest - before;
}
