/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching to a region, and links as peers come and go. */
#include "edge/edge.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/fault.h"
#include "edge/route.h"

enum { HUGE_PAGE_LEN = 2 << 20 };

static struct sl_ring *ring_at(const struct sl_edge *e, unsigned front, unsigned back, unsigned from_back)
{
	return (void *)(e->base + e->g.rings_off + (((uint64_t)front * e->g.nb_back + back) * 2 + from_back) * e->g.ring_len);
}

static unsigned peer_index(const struct sl_edge *e, unsigned side, unsigned slot)
{
	return side == SL_FRONT ? slot : e->g.nb_front + slot;
}

static struct sl_peer *peer_at(const struct sl_edge *e, unsigned side, unsigned slot)
{
	return (struct sl_peer *)(void *)(e->base + e->g.peers_off) + peer_index(e, side, slot);
}

static void link_init(struct sl_edge *e, struct sl_link *l, unsigned slot)
{
	unsigned front = e->side == SL_FRONT ? e->slot : slot, back = e->side == SL_FRONT ? slot : e->slot;
	struct sl_ring *tx = ring_at(e, front, back, e->side == SL_BACK), *rx = ring_at(e, front, back, e->side == SL_FRONT);

	l->edge = e;
	l->slot = (uint16_t)slot;
	l->doorbell = -1;
	l->peer = peer_at(e, !e->side, slot);
	l->tx.ring = tx;
	l->tx.entries = (void *)(tx + 1);
	l->tx.completions = (void *)(l->tx.entries + e->g.ring_cap);
	l->rx.ring = rx;
	l->rx.entries = (void *)(rx + 1);
	l->rx.completions = (void *)((struct sl_request_packet *)(void *)(rx + 1) + e->g.ring_cap);
	sl_list_init(&l->flows);
	sl_list_init(&l->waiting);
	/* nobody may take what a former owner of our slot left in our half */
	sl_publish_u64(&tx->prod_pair, 0);
	sl_publish_u64(&rx->cons_pair, 0);
}

static int arena_init(struct sl_edge *e)
{
	uint32_t i, slot;

	e->free_small = malloc(e->g.nb_small * sizeof(*e->free_small));
	e->free_big = malloc(e->g.nb_big * sizeof(*e->free_big));
	e->scratch = malloc(e->g.big_len);
	if (!e->free_small || !e->free_big || !e->scratch)
		return -ENOMEM;
	e->arena_off = (uint32_t)(e->g.arenas_off + peer_index(e, e->side, e->slot) * e->g.arena_len);
	/* lowest slot on top: what was used last is used first, so a quiet edge stays within few cache lines */
	for (i = 0, slot = e->g.nb_small; slot-- > 0;)
		e->free_small[i++] = (uint16_t)slot;
	e->nb_free_small = e->g.nb_small;
	for (i = 0, slot = e->g.nb_big; slot-- > 0;)
		e->free_big[i++] = (uint16_t)slot;
	e->nb_free_big = e->g.nb_big;
	return 0;
}

static int links_init(struct sl_edge *e)
{
	e->nb_links = e->side == SL_FRONT ? e->g.nb_back : e->g.nb_front;
	e->links = calloc(e->nb_links, sizeof(*e->links));
	if (!e->links)
		return -ENOMEM;
	for (unsigned i = 0; i < e->nb_links; i++)
		link_init(e, &e->links[i], i);
	return 0;
}

static int seat_check(const struct sl_edge *e, const struct sl_edge_seat *seat)
{
	unsigned nb = seat->side == SL_FRONT ? e->g.nb_front : e->g.nb_back;
	uint8_t own = seat->side == SL_FRONT ? e->g.front_layer : e->g.back_layer;
	uint8_t other = seat->side == SL_FRONT ? e->g.back_layer : e->g.front_layer;

	if (seat->side > SL_BACK || seat->slot >= nb || !seat->incarnation || seat->edge_id != e->g.edge_id ||
	    own != e->layer || other != seat->peer_layer)
		return -EINVAL;
	return 0;
}

int64_t sl_memory_len(int fd)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st))
		return -errno;
	if (st.st_size)
		return st.st_size;
	end = lseek(fd, 0, SEEK_END);   /* a guest's device */
	return end < 0 ? -errno : end;
}

/* Copies and checks the header. */
static int header_read(struct sl_edge *e, int fd, uint64_t len)
{
	size_t first = (size_t)sl_min(len, (uint64_t)HUGE_PAGE_LEN);
	void *base = mmap(NULL, first, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int r;

	if (base == MAP_FAILED)
		return -errno;
	r = sl_region_check(base, len, &e->g);
	munmap(base, first);
	return r;
}

static int memory_check(struct sl_edge *e, int fd, bool sealed)
{
	int64_t len = sl_memory_len(fd);
	int seals;

	if (len < 0)
		return (int)len;
	seals = sealed ? fcntl(fd, F_GET_SEALS) : 0;
	if (sealed && (seals < 0 || !(seals & F_SEAL_SHRINK)))   /* a peer could truncate it under us: SIGBUS */
		return -EPERM;
	return header_read(e, fd, (uint64_t)len);
}

/* The memory may go on behind the region, as a virtual machine's device is a power of two long: that costs nothing if
 * nobody touches it. */
static int region_map(struct sl_edge *e, int fd, bool sealed)
{
	int r = memory_check(e, fd, sealed);
	void *base;

	if (r)
		return r;
	base = mmap(NULL, e->g.region_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (base == MAP_FAILED)
		return -errno;
	e->base = base;
	e->map_len = e->g.region_len;
	return 0;
}

static void self_init(struct sl_edge *e)
{
	e->self = peer_at(e, e->side, e->slot);
	sl_post_u32(&e->self->sleeping, 0);
	sl_post_u32(&e->self->depth, 0);
	sl_post_u32(&e->self->load, 0);
	__atomic_store_n(&e->self->vm_id, e->vm_id, __ATOMIC_RELAXED);
	sl_publish_u32(&e->self->incarnation, e->incarnation);
}

static int attach(struct sl_edge *e, int fd, bool sealed, const struct sl_edge_seat *seat)
{
	int r = region_map(e, fd, sealed);

	if (r)
		return r;
	r = seat_check(e, seat);
	if (r)
		return r;
	e->side = seat->side;
	e->slot = seat->slot;
	e->incarnation = seat->incarnation;
	e->peer_layer = seat->peer_layer;
	e->rng = sl_now_ns() ^ ((uint64_t)e->vm_id << 40) ^ 0x9e3779b97f4a7c15u;
	r = links_init(e);
	if (!r)
		r = arena_init(e);
	if (!r)
		r = sl_flows_init(e);
	if (!r)
		self_init(e);
	return r;
}

int sl_edge_attach(int fd, bool sealed, const struct sl_edge_seat *seat, uint8_t layer, uint16_t vm_id,
		   const struct sl_edge_ops *ops, const struct sl_flow_ops *flow_ops, void *user, struct sl_edge **ret)
{
	struct sl_edge *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->ops = ops;
	e->flow_ops = flow_ops;
	e->user = user;
	e->layer = layer;
	e->vm_id = vm_id;
	sl_list_init(&e->done);
	sl_list_init(&e->dead);
	sl_list_init(&e->pool);
	r = attach(e, fd, sealed, seat);
	if (r) {
		sl_edge_detach(e);
		return r;
	}
	*ret = e;
	return 0;
}

void sl_edge_detach(struct sl_edge *e)
{
	if (!e)
		return;
	sl_flows_free(e);
	for (unsigned i = 0; e->links && i < e->nb_links; i++)
		free(e->links[i].tx.sent);
	free(e->links);
	free(e->free_small);
	free(e->free_big);
	free(e->scratch);
	if (e->base)
		munmap(e->base, e->map_len);
	free(e);
}

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
	l->rx.cons = l->rx.cprod = l->rx.cpublished = 0;
	l->rx.run.count = 0;
	memset(l->tx.sent, 0, e->g.ring_cap * sizeof(*l->tx.sent));
	sl_publish_u64(&l->tx.ring->prod_pair, 0);
	sl_publish_u64(&l->rx.ring->cons_pair, 0);
	sl_full_fence();
	SL_FAULT("up: pairs cleared");
	sl_publish_u32(&l->tx.ring->prod, 0);
	sl_publish_u32(&l->rx.ring->cons, 0);
	sl_publish_u32(&l->rx.ring->cprod, 0);
	SL_FAULT("up: indices reset");
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

/* The end of a link whose peer has gone. What it had still published counts: an answer may be complete. */
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
		const struct sl_link *l = e->up[i];

		if (l->quarantined)
			continue;
		if (sl_observe_u64(&l->rx.ring->prod_pair) == pair_of(l->incarnation, e->incarnation) &&
		    sl_observe_u32(&l->rx.ring->prod) != l->rx.cons)
			return true;
		if (waiting && sl_observe_u64(&l->tx.ring->cons_pair) == pair_of(e->incarnation, l->incarnation) &&
		    sl_observe_u32(&l->tx.ring->cprod) != l->tx.cprod)
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
