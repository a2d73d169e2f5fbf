/* SPDX-License-Identifier: Apache-2.0 */
/* Rings, completions and payload slots: the fast path. No allocation, no system call but the doorbell. */
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
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

int sl_route_request(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *buf, uint32_t *seq)
{
	struct sl_edge *e = l->edge;
	uint32_t at = l->tx.prod & (e->g.ring_cap - 1);
	struct sl_request_packet *entry = &l->tx.entries[at];

	if (!sl_link_room(l)) {
		e->ops->count(e, SL_CNT_RING_FULL);
		return -EAGAIN;
	}
	*entry = *p;
	entry->offset = buf ? buf->offset : 0;
	entry->epoch = e->incarnation;
	entry->next_vm_id = l->vm_id;
	entry->protocol_layer = e->peer_layer;
	l->tx.sent[at] = (struct sl_sent){.slot_off = buf ? buf->offset : 0, .open = true};
	if (seq)
		*seq = l->tx.prod;
	l->tx.prod++;
	return 0;
}

static void run_flush(struct sl_link *l)
{
	struct sl_rx *rx = &l->rx;

	if (!rx->run.count)
		return;
	rx->completions[rx->cprod & (l->edge->g.ring_cap - 1)] = rx->run;
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

/* Makes visible what was written since; says what the peer may want to be woken for. */
static uint32_t link_publish(struct sl_link *l)
{
	uint32_t news = 0;

	run_flush(l);
	if (l->rx.cpublished != l->rx.cprod) {
		/* the sender may reuse the slots at once: all our reads of them must be done before it sees cprod */
		sl_publish_u32(&l->rx.ring->cprod, l->rx.cprod);
		l->rx.cpublished = l->rx.cprod;
		news |= SL_SLEEP_COMPLETIONS;
	}
	if (l->tx.published != l->tx.prod) {
		/* the receiver must see the entries and their payload before it sees prod, or it reads the last round's */
		sl_publish_u32(&l->tx.ring->prod, l->tx.prod);
		l->tx.published = l->tx.prod;
		news |= SL_SLEEP_ENTRIES;
	}
	return news;
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
	for (unsigned i = 0; i < e->nb_up; i++) {
		const struct sl_link *l = e->up[i];
		uint64_t one = 1;

		if (!(news[i] & sl_peek_u32(&l->peer->sleeping)) || l->doorbell < 0)
			continue;
		/* a full counter (EAGAIN) means that it has been rung already */
		if (write(l->doorbell, &one, sizeof(one)) == sizeof(one))
			rung++;
		e->ops->count(e, SL_CNT_DOORBELLS);
	}
	return rung;
}

/* --- receiving --- */

static bool payload_inside(const struct sl_link *l, const struct sl_request_packet *p)
{
	const struct sl_edge *e = l->edge;
	unsigned peer = e->side == SL_FRONT ? e->g.nb_front + l->slot : l->slot;
	uint64_t lo = e->g.arenas_off + peer * e->g.arena_len, end = (uint64_t)p->offset + p->length;

	return p->length <= e->g.big_len && p->offset >= lo && end <= lo + e->g.arena_len;
}

/* Returns SL_CNT_MAX if the entry is as the contract wants it. */
static enum sl_counter packet_check(const struct sl_link *l, const struct sl_request_packet *p)
{
	const struct sl_edge *e = l->edge;
	bool has_data = (p->op == SL_OP_DATA || p->op == SL_OP_OPEN) && p->length;

	if (p->op < SL_OP_OPEN || p->op > SL_OP_DRAIN || (p->flags & ~FLAGS_KNOWN) || p->status > SL_ERROR_CLIENT)
		return SL_CNT_BAD_OP;
	if (p->protocol_layer != e->layer || p->next_vm_id != e->vm_id)
		return SL_CNT_BAD_LAYER;
	if (has_data && !payload_inside(l, p))
		return SL_CNT_BAD_OFFSET;
	return SL_CNT_MAX;
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
	if (sl_likely(sl_peek_u32(&ring->prod) == l->rx.cons) || sl_observe_u64(&ring->prod_pair) != rx_pair(l))
		return 0;
	nb = sl_observe_u32(&ring->prod) - l->rx.cons;
	if (sl_likely(nb <= l->edge->g.ring_cap))
		return nb;
	/* a new owner of the slot may have begun just now; its link comes with the next route page */
	if (sl_observe_u64(&ring->prod_pair) == rx_pair(l))
		sl_link_quarantine(l, SL_CNT_BAD_INDEX);
	return 0;
}

static bool packet_accept(struct sl_link *l, const struct sl_request_packet *p)
{
	enum sl_counter why = packet_check(l, p);

	if (sl_likely(why == SL_CNT_MAX))
		return true;
	sl_link_quarantine(l, why);
	return false;
}

uint32_t sl_link_recv(struct sl_link *l, struct sl_request_packet *p, uint32_t max, uint32_t *seq)
{
	struct sl_edge *e = l->edge;
	uint32_t nb, good = 0;

	if (l->quarantined || !l->incarnation)
		return 0;
	nb = sl_min(rx_waiting(l), max);
	if (!nb)
		return 0;
	*seq = l->rx.cons;
	for (uint32_t i = 0; i < nb; i++)
		p[i] = l->rx.entries[(l->rx.cons + i) & (e->g.ring_cap - 1)];
	sl_copied_once();
	for (; good < nb; good++) {
		if (sl_unlikely(p[good].epoch != l->incarnation)) {
			/* left by a former owner of the slot: refused, and nothing behind it can be ours either */
			sl_link_quarantine(l, SL_CNT_STALE_EPOCH);
			break;
		}
		if (!packet_accept(l, &p[good]))
			break;
	}
	l->rx.cons += nb;
	/* who looks at cons after our death must not take an entry for pending whose work we had begun */
	sl_publish_u32(&l->rx.ring->cons, l->rx.cons);
	return good;
}

/* --- completions --- */

static bool completion_apply(struct sl_link *l, const struct sl_completion *c)
{
	struct sl_edge *e = l->edge;
	uint32_t window = l->tx.published - l->tx.oldest, first = c->seq - l->tx.oldest;

	if (!c->count || first >= window || c->count > window - first || c->status < SL_COMPLETED || c->status > SL_ERROR_CLIENT)
		return false;
	for (uint32_t i = 0; i < c->count; i++) {
		struct sl_sent *s = &l->tx.sent[(c->seq + i) & (e->g.ring_cap - 1)];
		struct sl_buf buf = {.offset = s->slot_off};

		if (!s->open)
			return false;
		s->open = false;
		if (s->slot_off)
			sl_buf_free(e, &buf);
	}
	return true;
}

uint32_t sl_link_reap(struct sl_link *l)
{
	struct sl_edge *e = l->edge;
	uint64_t pair = (uint64_t)e->incarnation << 32 | l->incarnation;
	uint32_t nb, before = l->tx.oldest;

	if (sl_likely(sl_peek_u32(&l->tx.ring->cprod) == l->tx.cprod) || l->quarantined || !l->incarnation)
		return 0;
	if (sl_observe_u64(&l->tx.ring->cons_pair) != pair)
		return 0;
	nb = sl_observe_u32(&l->tx.ring->cprod) - l->tx.cprod;
	if (nb > e->g.ring_cap) {
		if (sl_observe_u64(&l->tx.ring->cons_pair) == pair)
			sl_link_quarantine(l, SL_CNT_BAD_COMPLETION);
		return 0;
	}
	for (; nb; nb--, l->tx.cprod++) {
		struct sl_completion c = l->tx.completions[l->tx.cprod & (e->g.ring_cap - 1)];

		sl_copied_once();
		if (!completion_apply(l, &c)) {
			sl_link_quarantine(l, SL_CNT_BAD_COMPLETION);
			break;
		}
	}
	while (l->tx.oldest != l->tx.published && !l->tx.sent[l->tx.oldest & (e->g.ring_cap - 1)].open)
		l->tx.oldest++;
	return l->tx.oldest - before;
}
