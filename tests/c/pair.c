/* SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/base.h"

static void count(struct sl_edge *e, enum sl_counter c)
{
	struct pair_side *s = e->user;

	s->counters[c]++;
}

static uint64_t request_id(struct sl_edge *e)
{
	struct pair_side *s = e->user;

	return ++s->next_request;
}

static int doorbell(void *user, uint16_t vm_id)
{
	const struct pair_side *s = user;

	(void)vm_id;
	return s->doorbell;
}

static const struct sl_edge_ops ops = {.count = count, .request_id = request_id};

static void must(int err)
{
	if (err)
		abort();
}

static void route_to(struct sl_route_page *page, uint16_t vm_id, uint32_t incarnation)
{
	*page = (struct sl_route_page){.seq = 2, .epoch = 1, .nb_routes = 1};
	page->routes[0] = (struct sl_route){.incarnation = incarnation, .vm_id = vm_id, .weight = 100, .state = SL_VM_ACTIVE};
}

void pair_open(struct pair *p, const struct sl_region *geometry, const struct sl_flow_ops *front, const struct sl_flow_ops *back)
{
	struct sl_edge_seat seat = {.edge_id = SL_LAYER_TCP << 8 | SL_LAYER_TLS};
	void *base;

	memset(p, 0, sizeof(*p));
	if (geometry)
		p->g = *geometry;
	p->g.nb_front = p->g.nb_back = 1;
	p->g.front_layer = SL_LAYER_TCP;
	p->g.back_layer = SL_LAYER_TLS;
	p->g.edge_id = seat.edge_id;
	must(sl_region_plan(&p->g, 4096));
	p->fd = memfd_create("sl-edge-test", MFD_ALLOW_SEALING);
	must(ftruncate(p->fd, (off_t)p->g.region_len));
	must(fcntl(p->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	base = mmap(NULL, p->g.region_len, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0);
	must(base == MAP_FAILED);
	sl_region_format(base, &p->g);
	munmap(base, p->g.region_len);
	p->front.doorbell = eventfd(0, EFD_NONBLOCK);
	p->back.doorbell = eventfd(0, EFD_NONBLOCK);
	seat.side = SL_FRONT;
	seat.incarnation = 1;
	seat.peer_layer = SL_LAYER_TLS;
	must(sl_edge_attach(p->fd, true, &seat, SL_LAYER_TCP, 1, &ops, front, &p->front, &p->front.edge));
	seat.side = SL_BACK;
	seat.incarnation = 2;
	seat.peer_layer = SL_LAYER_TCP;
	must(sl_edge_attach(p->fd, true, &seat, SL_LAYER_TLS, 2, &ops, back, &p->back, &p->back.edge));
	route_to(&p->to_back, 2, 2);
	route_to(&p->to_front, 1, 1);
	sl_edge_routes_set(p->front.edge, &p->to_back, doorbell);
	sl_edge_routes_set(p->back.edge, &p->to_front, doorbell);
}

void pair_close(struct pair *p)
{
	sl_edge_detach(p->front.edge);
	sl_edge_detach(p->back.edge);
	close(p->front.doorbell);
	close(p->back.doorbell);
	close(p->fd);
}

static uint32_t side_turn(struct pair_side *s)
{
	uint32_t work = sl_edge_poll(s->edge);

	sl_edge_turn_end(s->edge);
	return work;
}

uint32_t pair_turn(struct pair *p)
{
	return side_turn(&p->front) + side_turn(&p->back);
}

void pair_settle(struct pair *p)
{
	pair_turn(p);   /* publishes what the test has prepared */
	while (pair_turn(p))
		;
}
