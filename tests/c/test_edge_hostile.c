/* SPDX-License-Identifier: Apache-2.0 */
/* Edge and flows with a peer that writes what it likes into its half of the region. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/atomic.h"
#include "base/base.h"
#include "edge_rig.h"

struct hostile {
	const char *name;
	struct sl_request_packet p;
	enum sl_counter why;
	bool whole_len;              /* take offset and length as they are */
};

static void hostile_entries(void **state)
{
	static const struct hostile cases[] = {
		{"unknown op", {.op = 9}, SL_CNT_BAD_OP},
		{"no op", {.op = 0}, SL_CNT_BAD_OP},
		{"unknown flag", {.op = SL_OP_DATA, .flags = 0x80}, SL_CNT_BAD_OP},
		{"unknown status", {.op = SL_OP_RESET, .status = 77}, SL_CNT_BAD_OP},
		{"other layer", {.op = SL_OP_DATA, .protocol_layer = SL_LAYER_APP}, SL_CNT_BAD_LAYER},
		{"other VM", {.op = SL_OP_DATA, .next_vm_id = 9}, SL_CNT_BAD_LAYER},
		{"before the arena", {.op = SL_OP_DATA, .offset = 4096, .length = 8}, SL_CNT_BAD_OFFSET, true},
		{"end behind the region", {.op = SL_OP_DATA, .offset = 0xffffff00, .length = 0x200}, SL_CNT_BAD_OFFSET, true},
		{"length wraps", {.op = SL_OP_DATA, .offset = 0x100000, .length = 0xffffffff}, SL_CNT_BAD_OFFSET, true},
		{"flow index out of range", {.op = SL_OP_OPEN, .flow_id = 0xfffff, .request_id = 1}, SL_CNT_BAD_FLOW},
		{"no request_id", {.op = SL_OP_OPEN, .flow_id = 1 << 20}, SL_CNT_BAD_FLOW},
		{"other incarnation", {.op = SL_OP_DATA, .epoch = 99}, SL_CNT_STALE_EPOCH},
		{"no lap", {.op = SL_OP_DATA, .lap = 3}, SL_CNT_BAD_INDEX},
		{"no lap, other incarnation", {.op = SL_OP_DATA, .lap = 0xff, .epoch = 99}, SL_CNT_BAD_INDEX},
	};

	for (unsigned i = 0; i < sl_nb(cases); i++) {
		struct pair *p;
		struct sl_link *l;
		struct sl_request_packet *e;

		edge_teardown(state);
		edge_setup(state);
		p = *state;
		l = p->front.edge->up[0];
		assert_int_equal(sl_route_request(l, &cases[i].p, NULL, NULL), 0);
		sl_signal_vm(p->front.edge);
		e = &l->tx.entries[0];
		if (cases[i].whole_len)
			e->offset = cases[i].p.offset;
		if (cases[i].p.protocol_layer)
			e->protocol_layer = cases[i].p.protocol_layer;
		if (cases[i].p.next_vm_id)
			e->next_vm_id = cases[i].p.next_vm_id;
		if (cases[i].p.epoch)
			e->epoch = cases[i].p.epoch;
		if (cases[i].p.lap)
			e->lap = cases[i].p.lap;
		pair_turn(p);
		if (p->back.counters[cases[i].why] != 1 || p->back.counters[SL_CNT_QUARANTINED] != 1)
			fail_msg("case \"%s\": not refused", cases[i].name);
		pair_turn(p);
	}
}

static void a_lie_about_prod_moves_nothing(void **state)
{
	static const uint32_t prods[] = {257, 1 << 16, 0x7fffffff, 0x80000000, 0xffffffff};
	struct pair *p = *state;

	for (unsigned i = 0; i < sl_nb(prods); i++) {
		sl_publish_u32(&p->front.edge->up[0]->tx.ring->prod, prods[i]);
		assert_int_equal(sl_edge_poll(p->back.edge), 0);
		assert_int_equal(sl_link_waiting(p->back.edge->up[0]), 0);
	}
	sl_publish_u32(&p->front.edge->up[0]->tx.ring->prod, 256);
	assert_int_equal(sl_link_waiting(p->back.edge->up[0]), 256);
	assert_int_equal(sl_edge_poll(p->back.edge), 0);
	assert_int_equal(p->back.counters[SL_CNT_QUARANTINED], 0);
}

static void hostile_completions(void **state)
{
	static const struct sl_completion cases[] = {
		{0, 0, SL_COMPLETED, 1}, {1, 1, SL_COMPLETED, 1}, {0, 2, SL_COMPLETED, 1}, {0xffffffff, 1, SL_COMPLETED, 1},
		{0, 1, SL_PENDING, 1}, {0, 1, 99, 1}, {0, 0xffff, SL_COMPLETED, 1},
	};

	for (unsigned i = 0; i < sl_nb(cases); i++) {
		struct pair *p;
		struct sl_link *l;

		edge_teardown(state);
		edge_setup(state);
		p = *state;
		flow_open(p);
		sl_edge_turn_end(p->front.edge);
		l = p->back.edge->up[0];
		l->rx.completions[0] = cases[i];
		sl_edge_poll(p->front.edge);
		if (p->front.counters[SL_CNT_BAD_COMPLETION] != 1)
			fail_msg("completion case %u: accepted", i);
		assert_int_equal(front.overs, 1);
	}
}

static void completed_twice_is_refused(void **state)
{
	struct pair *p = *state;
	struct sl_link *l = p->back.edge->up[0];

	flow_open(p);
	sl_flow_write(front.flow, "a", 1);
	sl_edge_turn_end(p->front.edge);
	l->rx.completions[0] = (struct sl_completion){1, 1, SL_COMPLETED, 1};
	l->rx.completions[1] = (struct sl_completion){1, 1, SL_COMPLETED, 1};
	sl_edge_poll(p->front.edge);
	assert_int_equal(p->front.counters[SL_CNT_BAD_COMPLETION], 1);
}

static void more_than_the_window_is_refused(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	back.take = 0;
	f->tx_window = UINT32_MAX;
	for (int i = 0; i < 9; i++) {
		struct sl_buf buf;

		if (!sl_flow_reserve(f, 18000, &buf))
			break;
		sl_flow_commit(f, &buf, 18000, 0);
		pair_turn(p);
	}
	assert_int_equal(p->back.counters[SL_CNT_BAD_WINDOW], 1);
	assert_int_equal(back.status, SL_ERROR_PEER_GONE);
}

static void region_header_is_checked(void **state)
{
	struct pair *p = *state;
	struct sl_region g, bad;
	uint8_t page[4096] = {0};

	sl_region_format(page, &p->g);
	assert_int_equal(sl_region_check(page, p->g.region_len, &g), 0);
	assert_int_equal(sl_region_check(page, p->g.region_len - 1, &g), -EINVAL);
	for (size_t off = 4; off < sizeof(bad) - 4; off += 4) {   /* any changed word is refused or stands for itself */
		uint32_t v;

		sl_region_format(page, &p->g);
		memcpy(&v, page + off, 4);
		v ^= 0x10;
		memcpy(page + off, &v, 4);
		if (off == offsetof(struct sl_region, edge_id) || off == offsetof(struct sl_region, epoch))
			continue;
		assert_true(sl_region_check(page, p->g.region_len, &g) < 0);
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, edge_setup, edge_teardown)
	const struct CMUnitTest tests[] = {
		T(hostile_entries), T(a_lie_about_prod_moves_nothing), T(hostile_completions),
		T(completed_twice_is_refused), T(more_than_the_window_is_refused), T(region_header_is_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
