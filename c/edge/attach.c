/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching to a region: the mapping, the seat, the places of rings and arena. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "edge/edge.h"

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
	sl_list_init(&e->orphans);
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
