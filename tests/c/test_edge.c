/* SPDX-License-Identifier: Apache-2.0 */
/* Edge and flows between two honest instances in one process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/base.h"
#include "edge/route.h"
#include "edge_rig.h"

static void echo_and_end(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	back.echo = true;
	assert_int_equal(sl_flow_write(f, "ping", 4), 4);
	sl_flow_fin(f);
	pair_settle(p);
	assert_int_equal(back.opens, 1);
	assert_int_equal(back.fins, 1);
	assert_int_equal(front.len, 4);
	assert_memory_equal(front.bytes, "ping", 4);
	assert_int_equal(front.fins, 1);
	assert_int_equal(front.overs, 1);
	assert_int_equal(back.overs, 1);
	assert_int_equal(front.status, SL_COMPLETED);
	slots_all_back(p);
}

static void big_body_through_small_window(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);
	uint32_t sent = 0, all = 900000;
	uint8_t *body = malloc(all);

	for (uint32_t i = 0; i < all; i++)
		body[i] = (uint8_t)(i * 2654435761u >> 24);
	back.take = 1;   /* takes little by little, so bytes wait in private memory */
	while (back.len < all) {
		sent += sl_flow_write(f, body + sent, all - sent);
		assert_true(sent - back.len <= SL_FLOW_WINDOW);
		pair_turn(p);
		back.take = 7001;
		if (back.flow)
			sl_flow_resume(back.flow);
	}
	assert_memory_equal(back.bytes, body, all);
	assert_true(front.writables > 0);
	free(body);
	sl_flow_reset(f, SL_ERROR_CLIENT);
	pair_settle(p);
	assert_int_equal(back.status, SL_ERROR_CLIENT);
	slots_all_back(p);
}

static void fin_waits_behind_bytes(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	back.take = 0;
	assert_int_equal(sl_flow_write(f, "abc", 3), 3);
	sl_flow_fin(f);
	pair_settle(p);
	assert_int_equal(back.fins, 0);
	assert_int_equal(sl_flow_backlog(back.flow), 3);
	sl_flow_fin(back.flow);      /* our own direction is closed: the front may forget the flow now */
	pair_settle(p);
	assert_int_equal(front.overs, 1);
	assert_int_equal(back.overs, 0);
	back.take = UINT32_MAX;
	sl_flow_resume(back.flow);
	pair_settle(p);
	assert_int_equal(back.fins, 1);
	assert_int_equal(back.overs, 1);
	assert_int_equal(back.status, SL_COMPLETED);
}

static void ids_are_used_again(void **state)
{
	struct pair *p = *state;

	back.echo = true;
	for (int i = 0; i < 5000; i++) {
		struct sl_flow *f = flow_open(p);

		sl_flow_write(f, "x", 1);
		if (i % 3)
			sl_flow_fin(f);
		else
			sl_flow_reset(f, SL_ERROR_CLIENT);
		pair_settle(p);
	}
	assert_int_equal(back.opens, 5000);
	assert_int_equal(back.overs, 5000);
	assert_int_equal(p->front.counters[SL_CNT_QUARANTINED] + p->back.counters[SL_CNT_QUARANTINED], 0);
	slots_all_back(p);
}

static void full_ring_and_empty_arena_wait(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f[300];
	int opened = 0, err = 0;

	for (; opened < 300; opened++) {
		err = sl_flow_open(p->front.edge, 0, "hello", 5, 0, NULL, &f[opened]);
		if (err)
			break;
	}
	assert_int_equal(err, -EAGAIN);      /* nobody takes anything yet: the ring is full */
	assert_true(opened > 200);
	sl_flow_fin(f[0]);                   /* control entries still find room, or wait */
	for (int i = 0; i < opened; i++)
		sl_flow_reset(f[i], SL_ERROR_CLIENT);
	pair_settle(p);
	assert_int_equal(back.overs, opened);
	slots_all_back(p);
}

static void peer_dies(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	sl_flow_write(f, "abc", 3);
	sl_edge_turn_end(p->front.edge);     /* published, never taken */
	sl_edge_peer_gone(p->front.edge, 2);
	assert_int_equal(front.overs, 1);
	assert_int_equal(front.status, SL_ERROR_PEER_GONE);
	sl_edge_turn_end(p->front.edge);
	assert_int_equal(p->front.edge->nb_free_small, p->g.nb_small);
	assert_int_equal(sl_flow_open(p->front.edge, 0, "hello", 5, 0, NULL, &f), -ENETUNREACH);
}

static void pending_is_told_from_in_progress(void **state)
{
	struct pair *p = *state;

	flow_open(p);
	sl_edge_turn_end(p->front.edge);
	sl_edge_peer_gone(p->front.edge, 2);
	assert_true(front.unseen);
	edge_teardown(state);
	edge_setup(state);
	p = *state;
	flow_open(p);
	pair_turn(p);
	sl_edge_peer_gone(p->front.edge, 2);
	assert_false(front.unseen);
}

static int no_doorbell(void *user, uint16_t vm_id)
{
	(void)user;
	(void)vm_id;
	return -1;
}

/* A process hears of a death by a leave message, a guest by a route page without the dead. */
static void gone_by_message(struct sl_edge *e)
{
	sl_edge_peer_gone(e, 2);
}

static void gone_by_page(struct sl_edge *e)
{
	struct sl_route_page nobody = {.seq = 4, .epoch = 2};

	sl_edge_routes_set(e, &nobody, no_doorbell);
}

static void last_words(struct pair *p, void (*gone)(struct sl_edge *e))
{
	struct sl_flow *f = flow_open(p);

	sl_flow_fin(f);
	pair_settle(p);
	sl_flow_write(back.flow, "answer", 6);
	sl_flow_fin(back.flow);
	sl_edge_turn_end(p->back.edge);
	gone(p->front.edge);
	sl_edge_turn_end(p->front.edge);
	assert_int_equal(front.len, 6);
	assert_int_equal(front.fins, 1);
	assert_int_equal(front.status, SL_COMPLETED);
	assert_int_equal(p->front.counters[SL_CNT_PEER_LOST], 1);
}

static void last_words_of_a_dead_peer_count(void **state)
{
	last_words(*state, gone_by_message);
	edge_teardown(state);
	edge_setup(state);
	last_words(*state, gone_by_page);
}

/* It was only stopped: it goes on in the middle of what it did, and knows of nothing. Until it is killed it may. */
static void who_wakes_up_after_it_was_given_up_is_not_heard(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	sl_flow_write(f, "abc", 3);
	pair_settle(p);
	gone_by_page(p->front.edge);
	assert_int_equal(front.overs, 1);
	assert_int_equal(front.status, SL_ERROR_PEER_GONE);
	sl_flow_write(back.flow, "answer", 6);
	sl_flow_fin(back.flow);
	pair_settle(p);
	assert_int_equal(front.len, 0);
	assert_int_equal(front.overs, 1);
	assert_int_equal(p->front.counters[SL_CNT_QUARANTINED], 0);
	assert_int_equal(sl_flow_open(p->front.edge, 0, "hello", 5, 0, NULL, &f), -ENETUNREACH);
	assert_int_equal(p->front.edge->nb_free_small, p->g.nb_small);
}

static void a_new_owner_of_the_slot_starts_clean(void **state)
{
	struct pair *p = *state;
	struct sl_edge_seat seat = {.edge_id = p->g.edge_id, .side = SL_BACK, .incarnation = 7, .peer_layer = SL_LAYER_TCP};
	struct sl_flow *f = flow_open(p);

	back.echo = true;
	sl_flow_write(f, "abc", 3);
	pair_settle(p);
	sl_edge_detach(p->back.edge);
	assert_int_equal(sl_edge_attach(p->fd, true, &seat, SL_LAYER_TLS, 3, p->front.edge->ops, &back_ops, &p->back, &p->back.edge), 0);
	pair_turn(p);                        /* the front has not heard of it: nothing may be misread */
	assert_int_equal(p->front.counters[SL_CNT_QUARANTINED], 0);
	p->to_back.routes[0].incarnation = 7;
	p->to_back.routes[0].vm_id = 3;
	sl_edge_routes_set(p->front.edge, &p->to_back, no_doorbell);
	assert_int_equal(front.overs, 1);
	sl_edge_routes_set(p->back.edge, &p->to_front, no_doorbell);
}

/* Each entry of the ring is seen in its own lap only, and never before the first that waits is published. */
static void entries_are_there_in_their_lap(void **state)
{
	struct pair *p = *state;
	struct sl_link *tx = p->front.edge->up[0], *rx = p->back.edge->up[0];
	struct sl_request_packet in[SL_BURST], out[3] = {{.op = SL_OP_DATA}, {.op = SL_OP_DATA}, {.op = SL_OP_DATA}};
	uint32_t seq, expected = 0;

	for (unsigned i = 0; i < 1000; i++) {
		for (unsigned k = 0; k < 3; k++)
			out[k].request_id = 3 * i + k;
		assert_int_equal(sl_route_burst(tx, out, NULL, 3), 3);
		assert_int_equal(sl_link_recv(rx, in, SL_BURST, &seq), 0);
		assert_false(sl_link_has_entries(rx));
		sl_signal_vm(p->front.edge);
		assert_true(sl_link_has_entries(rx));
		assert_int_equal(sl_link_waiting(rx), 3);
		for (unsigned n = 3; n;) {           /* in one go and in pieces */
			uint32_t nb = sl_link_recv(rx, in, i % 3 + 1, &seq);

			assert_in_range(nb, 1, n);
			for (unsigned k = 0; k < nb; k++)
				assert_int_equal(in[k].request_id, expected++);
			sl_link_complete(rx, seq, nb, SL_COMPLETED);
			n -= nb;
		}
		assert_false(sl_link_has_entries(rx));
		sl_signal_vm(p->back.edge);
		assert_true(sl_link_has_completions(tx));
		assert_int_equal(sl_link_reap(tx), 3);
		assert_false(sl_link_has_completions(tx));
	}
}

static void wish_to_end_reaches_the_back(void **state)
{
	struct pair *p = *state;

	flow_open(p);
	pair_settle(p);
	sl_edge_drain(p->front.edge);
	pair_settle(p);
	assert_int_equal(back.drains, 1);
	flow_open(p);                        /* opened while draining: asked at once */
	pair_settle(p);
	assert_int_equal(back.drains, 2);
	sl_edge_drain(p->front.edge);
	pair_settle(p);
	assert_int_equal(back.drains, 2);
}

/* The back wishes to be relieved, and the page that names another one has not been read yet. */
static void the_only_receiver_stays_one(void **state)
{
	struct pair *p = *state;
	struct sl_flow *f = flow_open(p);

	pair_settle(p);
	sl_flow_drain(back.flow);
	pair_settle(p);
	assert_false(sl_flow_hand_over(f));
	flow_open(p);
	pair_settle(p);
	assert_int_equal(back.opens, 2);
}

static void sleeper_is_rung_once(void **state)
{
	struct pair *p = *state;

	sl_edge_sleep_set(p->back.edge, true);
	assert_false(sl_edge_pending(p->back.edge));
	flow_open(p);
	assert_int_equal(sl_signal_vm(p->front.edge), 1);
	assert_true(sl_edge_pending(p->back.edge));
	sl_edge_sleep_set(p->back.edge, false);
	sl_flow_write(front.flow, "a", 1);
	assert_int_equal(sl_signal_vm(p->front.edge), 0);
}

static void draw_follows_weights(void **state)
{
	struct pair *p = *state;
	struct sl_edge *e = p->front.edge;
	struct sl_link links[4] = {0};
	struct sl_peer peers[4] = {0};
	unsigned hits[4] = {0};

	for (unsigned i = 0; i < 4; i++) {
		links[i] = (struct sl_link){.edge = e, .incarnation = 1, .state = SL_VM_ACTIVE, .weight = (uint16_t)(i + 1), .peer = &peers[i]};
		e->up[i] = &links[i];
	}
	e->nb_up = 4;
	sl_edge_sleep_set(e, false);
	sl_alias_build(e);
	for (int i = 0; i < 100000; i++)
		hits[sl_select_best_vm(e) - links]++;
	for (unsigned i = 0; i < 4; i++)   /* equal depths: the first drawn wins, so shares are the weights */
		assert_in_range(hits[i], 10000 * (i + 1) - 1000, 10000 * (i + 1) + 1000);
	peers[3].depth = 1000;
	memset(hits, 0, sizeof(hits));
	for (int i = 0; i < 100000; i++)
		hits[sl_select_best_vm(e) - links]++;
	assert_int_equal(hits[3], 0);   /* stuck: the other one drawn takes it, whoever that is */
	peers[0].depth = peers[1].depth = 1000;
	peers[2].depth = 300, peers[3].depth = 390;
	memset(hits, 0, sizeof(hits));
	for (int i = 0; i < 100000; i++)
		hits[sl_select_best_vm(e) - links]++;
	assert_true(hits[3] > hits[2] && hits[2] > hits[1]);   /* deeper, but not for its weight */
	e->nb_up = 1;
	e->up[0] = &e->links[0];
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, edge_setup, edge_teardown)
	const struct CMUnitTest tests[] = {
		T(echo_and_end), T(big_body_through_small_window), T(fin_waits_behind_bytes), T(ids_are_used_again),
		T(full_ring_and_empty_arena_wait), T(peer_dies), T(pending_is_told_from_in_progress),
		T(last_words_of_a_dead_peer_count), T(a_new_owner_of_the_slot_starts_clean),
		T(who_wakes_up_after_it_was_given_up_is_not_heard),
		T(entries_are_there_in_their_lap), T(wish_to_end_reaches_the_back), T(sleeper_is_rung_once),
		T(the_only_receiver_stays_one), T(draw_follows_weights),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
