/* SPDX-License-Identifier: Apache-2.0 */
/* An edge in an instance's turns: links as peers come and go, what came in, sleep. */
#include <stdlib.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/fault.h"
#include "edge/entry.h"
#include "edge/route.h"

static uint64_t pair_of(uint32_t sender, uint32_t receiver)
{
	return (uint64_t)sender << 32 | receiver;
}

/* Both halves that we own start again at 0. The pair is cleared before and set after, so that the peer never reads an
 * index of one pairing as one of another. */
static void link_up(struct sl_link *l, const struct sl_route *r)
{
	struct sl_edge *e = l->edge;

	l->incarnation = r->incarnation;
	l->vm_id = r->vm_id;
	l->quarantined = false;
	l->tx.prod = l->tx.published = l->tx.oldest = l->tx.cprod = 0;
	l->rx.cons = l->rx.cprod = l->rx.ctold = 0;
	l->tx.up = l->rx.up = false;
	l->rx.run.count = 0;
	memset(l->tx.sent, 0, e->g.ring_cap * sizeof(*l->tx.sent));
	sl_publish_u64(&l->tx.ring->prod_pair, 0);
	sl_publish_u64(&l->rx.ring->cons_pair, 0);
	sl_full_fence();
	SL_FAULT("up: pairs cleared");
	for (uint32_t n = 0; n < e->g.ring_cap; n++) {
		sl_post_u64(&sl_entry_at(l->tx.entries, e->g.ring_cap, n)->w[SL_ENTRY_LAST], 0);
		sl_post_u64(sl_completion_at(l->rx.completions, e->g.ring_cap, n), 0);
	}
	sl_post_u32(&l->tx.ring->prod, 0);
	sl_post_u32(&l->rx.ring->cons, 0);
	SL_FAULT("up: rings cleared");
	sl_publish_u64(&l->tx.ring->prod_pair, pair_of(e->incarnation, l->incarnation));
	SL_FAULT("up: sender's pair set");
	sl_publish_u64(&l->rx.ring->cons_pair, pair_of(l->incarnation, e->incarnation));
	e->up[e->nb_up++] = l;
}

static void sent_give_back(struct sl_link *l)
{
	struct sl_edge *e = l->edge;

	for (uint32_t n = l->tx.oldest; n != l->tx.prod; n++) {
		uint32_t *sent = &l->tx.sent[n & (e->g.ring_cap - 1)];
		struct sl_buf buf = {.offset = *sent & ~(uint32_t)SL_SENT_OPEN};

		if (buf.offset)
			sl_buf_free(e, &buf);
		*sent = 0;
	}
	l->tx.oldest = l->tx.prod;
}

static void link_down(struct sl_link *l)
{
	struct sl_edge *e = l->edge;

	if (!l->incarnation)
		return;
	sl_flows_link_lost(l, SL_ERROR_PEER_GONE);
	sent_give_back(l);
	sl_publish_u64(&l->tx.ring->prod_pair, 0);
	sl_publish_u64(&l->rx.ring->cons_pair, 0);
	l->lost = l->incarnation;
	l->incarnation = 0;
	l->weight = 0;
	for (unsigned i = 0; i < e->nb_up; i++) {
		if (e->up[i] == l) {
			e->up[i] = e->up[--e->nb_up];
			break;
		}
	}
}

void sl_link_quarantine(struct sl_link *l, enum sl_counter why)
{
	struct sl_edge *e = l->edge;

	e->ops->count(e, why);
	if (l->quarantined)
		return;
	e->ops->count(e, SL_CNT_QUARANTINED);
	if (e->ops->shut_out)
		e->ops->shut_out(e, l->vm_id, why);
	l->quarantined = true;
	l->weight = 0;
	sl_alias_build(e);   /* out of the draw before its flows end: their callbacks may open others at once */
	sl_flows_link_lost(l, SL_ERROR_PEER_GONE);
}

/* Never the pairing that was dropped already: its indices would start again at 0 while the ring still holds what it
 * consumed. */
static const struct sl_route *route_of_slot(const struct sl_route_page *page, unsigned slot, uint32_t lost)
{
	for (uint32_t i = 0; i < sl_min(page->nb_routes, (uint32_t)SL_SIDE_MAX); i++)
		if (page->routes[i].slot == slot && page->routes[i].incarnation && page->routes[i].incarnation != lost)
			return &page->routes[i];
	return NULL;
}

static bool route_replaced(const struct sl_link *l, const struct sl_route *r)
{
	return l->incarnation && (!r || r->incarnation != l->incarnation);
}

static void route_take(struct sl_link *l, const struct sl_route *r, int (*doorbell)(void *user, uint16_t vm_id))
{
	struct sl_edge *e = l->edge;

	if (!l->tx.sent)
		l->tx.sent = calloc(e->g.ring_cap, sizeof(*l->tx.sent));
	if (!l->tx.sent)
		return;
	if (!l->incarnation)
		link_up(l, r);
	l->state = r->state;
	l->weight = l->quarantined ? 0 : r->weight;
	l->doorbell = doorbell(e->user, r->vm_id);
}

static uint32_t link_input(struct sl_link *l)
{
	struct sl_request_packet p[SL_BURST];
	uint32_t seq = 0, k, nb = sl_link_recv(l, p, SL_BURST, &seq);

	for (k = 0; k < nb && !l->quarantined && l->incarnation; k++)
		sl_process_request(l, &p[k]);
	if (nb && l->incarnation)
		sl_link_complete(l, seq, nb, k == nb ? SL_COMPLETED : SL_ERROR);
	return nb;
}

/* The end of a link whose peer has gone. What it had still published counts: an answer may be complete,
 * and flows that move rely on it. */
static void link_leave(struct sl_link *l)
{
	if (!sl_list_empty(&l->flows))
		l->edge->ops->count(l->edge, SL_CNT_PEER_LOST);
	for (uint32_t n = 0; n < l->edge->g.ring_cap && link_input(l);)
		n += SL_BURST;
	link_down(l);
}

void sl_edge_routes_set(struct sl_edge *e, const struct sl_route_page *page, int (*doorbell)(void *user, uint16_t vm_id))
{
	/* who leaves is out of the draw, and who comes is in it, before any flow ends: callbacks may open others at
	 * once */
	for (unsigned slot = 0; slot < e->nb_links; slot++) {
		struct sl_link *l = &e->links[slot];
		const struct sl_route *r = route_of_slot(page, slot, l->lost);

		if (route_replaced(l, r))
			l->weight = 0;
		else if (r)
			route_take(l, r, doorbell);
	}
	sl_alias_build(e);
	for (unsigned slot = 0; slot < e->nb_links; slot++) {
		struct sl_link *l = &e->links[slot];
		const struct sl_route *r = route_of_slot(page, slot, l->lost);

		if (!route_replaced(l, r))
			continue;
		link_leave(l);
		if (r)
			route_take(l, r, doorbell);
	}
	e->routes_epoch = page->epoch;
	sl_alias_build(e);
}

void sl_edge_doorbell_set(struct sl_edge *e, uint16_t vm_id, int fd)
{
	for (unsigned i = 0; i < e->nb_up; i++) {
		if (e->up[i]->vm_id != vm_id)
			continue;
		e->up[i]->doorbell = fd;
		/* it may have slept through what was published before */
		if (fd >= 0 && sl_link_ring(e->up[i]))
			e->ops->count(e, SL_CNT_DOORBELLS);
	}
}

void sl_edge_peer_gone(struct sl_edge *e, uint16_t vm_id)
{
	for (unsigned i = 0; i < e->nb_links; i++) {
		struct sl_link *l = &e->links[i];

		if (!l->incarnation || l->vm_id != vm_id)
			continue;
		/* out of the draw first: callbacks of its flows may open others at once */
		l->weight = 0;
		sl_alias_build(e);
		link_leave(l);
	}
}

uint32_t sl_edge_poll(struct sl_edge *e)
{
	struct sl_link *up[SL_SIDE_MAX];
	unsigned nb_up = e->nb_up;
	uint32_t done = 0;

	memcpy(up, e->up, nb_up * sizeof(up[0]));   /* callbacks may drop links */
	for (unsigned i = 0; i < nb_up; i++)
		done += sl_link_reap(up[i]) + link_input(up[i]);
	for (unsigned i = 0; i < nb_up; i++)
		if (!sl_list_empty(&up[i]->waiting))
			sl_flows_serve(up[i]);
	return done;
}

static bool any_waiting(const struct sl_edge *e)
{
	for (unsigned i = 0; i < e->nb_up; i++)
		if (!sl_list_empty(&e->up[i]->waiting))
			return true;
	return false;
}

bool sl_edge_pending(const struct sl_edge *e)
{
	bool waiting = any_waiting(e);

	for (unsigned i = 0; i < e->nb_up; i++) {
		struct sl_link *l = e->up[i];

		if (!l->quarantined && (sl_link_has_entries(l) || (waiting && sl_link_has_completions(l))))
			return true;
	}
	return false;
}

void sl_edge_turn_end(struct sl_edge *e)
{
	sl_flows_finish(e);
	sl_signal_vm(e);
	sl_flows_turn_end(e);
}

void sl_edge_sleep_set(struct sl_edge *e, bool asleep)
{
	__u32 wish = !asleep ? 0 : any_waiting(e) ? SL_SLEEP_ENTRIES | SL_SLEEP_COMPLETIONS : SL_SLEEP_ENTRIES;

	if (!asleep && !sl_peek_u32(&e->self->sleeping))
		return;
	sl_post_u32(&e->self->sleeping, wish);
	/* the wish must be visible before we look at the rings for the last time: a sender publishes first and looks at
	 * it then. Without the fence both could miss each other and the entry would lie there until the next
	 * heartbeat. */
	if (asleep)
		sl_full_fence();
}
