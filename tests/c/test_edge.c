/* SPDX-License-Identifier: Apache-2.0 */
/* Edge and flows between two instances in one process, honest and hostile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/atomic.h"
#include "base/base.h"
#include "pair.h"

/* A layer that records what it is told. */
struct seen {
	struct sl_flow *flow;
	uint8_t bytes[1 << 20];
	uint32_t len, take;          /* take: bytes that data() may still take, UINT32_MAX = all */
	unsigned opens, fins, overs, writables, drains;
	enum sl_request_status status;
	bool unseen, echo;
};

static struct seen front, back;

static uint32_t seen_data(struct seen *s, struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	uint32_t n = sl_min(len, s->take);

	if (s->echo)
		n = sl_flow_write(f, p, n);
	assert_true(s->len + n <= sizeof(s->bytes));
	memcpy(s->bytes + s->len, p, n);
	s->len += n;
	if (s->take != UINT32_MAX)
		s->take -= n;
	return n;
}

static void seen_over(struct seen *s, struct sl_flow *f, enum sl_request_status status)
{
	s->overs++;
	s->status = status;
	s->unseen = f->unseen;
	s->flow = NULL;
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len) { return seen_data(&front, f, p, len); }
static void front_fin(struct sl_flow *f) { (void)f; front.fins++; }
static void front_writable(struct sl_flow *f) { (void)f; front.writables++; }
static void front_over(struct sl_flow *f, enum sl_request_status s) { seen_over(&front, f, s); }
static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len) { return seen_data(&back, f, p, len); }
static void back_writable(struct sl_flow *f) { back.writables++; sl_flow_resume(f); }
static void back_drain(struct sl_flow *f) { (void)f; back.drains++; }
static void back_over(struct sl_flow *f, enum sl_request_status s) { seen_over(&back, f, s); }

static void back_fin(struct sl_flow *f)
{
	back.fins++;
	if (back.echo)
		sl_flow_fin(f);
}

static int back_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	(void)fin;
	assert_int_equal(len, 5);
	assert_memory_equal(msg, "hello", 5);
	back.opens++;
	back.flow = f;
	return 0;
}

static const struct sl_flow_ops front_ops = {.data = front_data, .fin = front_fin, .writable = front_writable, .over = front_over};
static const struct sl_flow_ops back_ops = {
	.open = back_open, .data = back_data, .fin = back_fin, .writable = back_writable, .over = back_over, .drain = back_drain,
};

static int setup(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));

	memset(&front, 0, sizeof(front));
	memset(&back, 0, sizeof(back));
	front.take = back.take = UINT32_MAX;
	pair_open(p, NULL, &front_ops, &back_ops);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	pair_close(*state);
	free(*state);
	return 0;
}

static struct sl_flow *flow_open(struct pair *p)
{
	assert_int_equal(sl_flow_open(p->front.edge, 0, "hello", 5, 0, NULL, &front.flow), 0);
	return front.flow;
}

static void slots_all_back(const struct pair *p)
{
	assert_int_equal(p->front.edge->nb_free_small, p->g.nb_small);
	assert_int_equal(p->front.edge->nb_free_big, p->g.nb_big);
	assert_int_equal(p->back.edge->nb_free_small, p->g.nb_small);
	assert_int_equal(p->back.edge->nb_free_big, p->g.nb_big);
}

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
	teardown(state);
	setup(state);
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
	teardown(state);
	setup(state);
	last_words(*state, gone_by_page);
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
	sl_edge_routes_set(p->front.edge, &p->to_back, (int (*)(void *, uint16_t))(void (*)(void))abs);
	assert_int_equal(front.overs, 1);
	sl_edge_routes_set(p->back.edge, &p->to_front, (int (*)(void *, uint16_t))(void (*)(void))abs);
}

/* --- hostile --- */

struct hostile {
	const char *name;
	struct sl_request_packet p;
	enum sl_counter why;
	bool whole_len;              /* take offset and length as they are */
};

static uint32_t arena_of(const struct sl_edge *e)
{
	return e->arena_off;
}

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

		teardown(state);
		setup(state);
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

static void hostile_completions(void **state)
{
	static const struct sl_completion cases[] = {
		{0, 0, SL_COMPLETED, 1}, {1, 1, SL_COMPLETED, 1}, {0, 2, SL_COMPLETED, 1}, {0xffffffff, 1, SL_COMPLETED, 1},
		{0, 1, SL_PENDING, 1}, {0, 1, 99, 1}, {0, 0xffff, SL_COMPLETED, 1},
	};

	for (unsigned i = 0; i < sl_nb(cases); i++) {
		struct pair *p;
		struct sl_link *l;

		teardown(state);
		setup(state);
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
	(void)arena_of;
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
	extern void sl_alias_build(struct sl_edge *);
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
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(echo_and_end), T(big_body_through_small_window), T(fin_waits_behind_bytes), T(ids_are_used_again),
		T(full_ring_and_empty_arena_wait), T(peer_dies), T(pending_is_told_from_in_progress),
		T(last_words_of_a_dead_peer_count), T(a_new_owner_of_the_slot_starts_clean), T(hostile_entries),
		T(a_lie_about_prod_moves_nothing), T(entries_are_there_in_their_lap), T(hostile_completions),
		T(completed_twice_is_refused), T(more_than_the_window_is_refused), T(wish_to_end_reaches_the_back),
		T(sleeper_is_rung_once), T(region_header_is_checked), T(draw_follows_weights),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
