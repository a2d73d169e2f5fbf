/* SPDX-License-Identifier: Apache-2.0 */
/* What it costs to pick the receiver of a new flow. */
#include <stdio.h>

#include "base/base.h"
#include "rig.h"

enum { BATCH = 10000 };

static int no_doorbell(void *user, uint16_t vm_id)
{
	(void)user;
	(void)vm_id;
	return -1;
}

/* Prints ns per call. */
void bench_select(struct rig *r, unsigned receivers)
{
	struct sl_route_page page = {.seq = 2, .epoch = 1, .nb_routes = receivers};
	struct rig_edge edge;
	struct sl_edge *e;
	uint64_t begin, end, now, nb = 0, sum = 0;

	rig_edge_make(r, &edge, SL_LAYER_USER, (uint16_t)receivers);
	rig_pin(0);
	e = rig_attach(r, &edge, SL_FRONT, 0);
	for (unsigned i = 0; i < receivers; i++)
		page.routes[i] = (struct sl_route){.incarnation = i + 2, .vm_id = (uint16_t)(i + 2), .slot = (uint16_t)i,
						   .weight = (uint16_t)(100 + i % 7), .state = SL_VM_ACTIVE};
	sl_edge_routes_set(e, &page, no_doorbell);
	for (unsigned i = 0; i < receivers; i++)
		e->links[i].peer->depth = i * 7 % 13;   /* uneven load: both answers of the comparison occur */
	begin = now = sl_now_ns();
	for (end = begin + (uint64_t)(r->seconds * 1e9); now < end; now = sl_now_ns(), nb += BATCH)
		for (unsigned i = 0; i < BATCH; i++)
			sum += sl_select_best_vm(e)->slot;
	if (sum == 1)
		rig_fail("always the same receiver");
	printf("%.3f\n", (double)(now - begin) / (double)nb);
	sl_edge_detach(e);
}
