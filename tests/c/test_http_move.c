/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: a connection outlives the tls instance in front of it, and nobody else can have it. */
#include "http_rig.h"

static const uint8_t token[SL_TOKEN_LEN] = "a secret token!";

static void rig_movable(struct rig *r)
{
	rig_default(r);
	memcpy(r->open.token, token, sizeof(token));
	r->c = rig_connect(r);
	assert_non_null(r->c);
	assert_true(r->c->flow.keeps && r->c->flow.piece_max == 16384);
}

static struct fake_flow *claim(struct rig *r, const void *with, uint64_t request_id)
{
	return fake_take_over(&r->k, request_id, with, SL_TOKEN_LEN);
}

/* Death is heard of before or after the next instance comes; the answer goes on where it was. */
static void either_comes_first(void **state)
{
	(void)state;
	for (int heir_first = 0; heir_first < 2; heir_first++) {
		struct fake_flow *heir;
		struct rig r;

		rig_movable(&r);
		say(&r, GET "\r\n");
		heir = heir_first ? claim(&r, token, r.c->flow.request_id) : NULL;
		assert_true(fake_orphan(r.c));
		if (!heir)
			heir = claim(&r, token, r.c->flow.request_id);
		assert_true(heir && heir->ended && !heir->out_reset);
		assert_false(r.c->orphan);
		answer(&r, 200, "", "whole");
		assert_string_equal(body_of(r.c), "whole");
		fake_tick(&r.k, 10000);
		assert_int_equal(r.k.inst.active_flows, 2);   /* that of rig_default is there, too */
		fake_stop(&r.k);
	}
}

static void an_answer_waits_for_the_next_instance(void **state)
{
	struct rig r;

	(void)state;
	rig_movable(&r);
	say(&r, GET "\r\n");
	assert_true(fake_orphan(r.c));
	answer(&r, 200, "", "whole");
	assert_int_equal(r.c->out_len, 0);
	assert_non_null(claim(&r, token, r.c->flow.request_id));
	fake_credit(r.c, 0);   /* as the library does: writable() */
	assert_string_equal(body_of(r.c), "whole");
	fake_stop(&r.k);
}

static void nobody_comes(void **state)
{
	struct rig r;

	(void)state;
	rig_movable(&r);
	assert_true(fake_orphan(r.c));
	fake_tick(&r.k, 2500);
	assert_false(r.c->ended);
	fake_tick(&r.k, 1000);
	assert_true(r.c->ended);
	fake_stop(&r.k);
}

/* The next instance's claim overtakes the connection itself: they come in two rings. */
static void a_claim_comes_before_its_connection(void **state)
{
	const uint64_t request_id = 1ull << 48 | 4711;
	struct fake_flow *heir, *former;
	struct rig r;

	(void)state;
	rig_default(&r);
	former = claim(&r, token, request_id);
	heir = claim(&r, token, request_id);   /* the later one counts */
	assert_true(former && former->out_reset && heir && !heir->ended);
	memcpy(r.open.token, token, sizeof(token));
	r.k.next_request_id = 4710;
	r.c = rig_connect(&r);
	assert_int_equal(r.c->flow.request_id, request_id);
	say(&r, GET "\r\n");
	assert_true(fake_orphan(r.c));
	assert_true(heir->ended && !heir->out_reset && !r.c->orphan);
	answer(&r, 200, "", "whole");
	assert_string_equal(body_of(r.c), "whole");
	fake_tick(&r.k, 10000);
	assert_int_equal(r.k.inst.active_flows, 2);
	fake_stop(&r.k);
}

static void a_claim_waits_a_little(void **state)
{
	struct fake_flow *heir, *dead;
	struct rig r;

	(void)state;
	rig_default(&r);
	dead = claim(&r, token, 11);
	heir = claim(&r, token, 12);
	assert_int_equal(r.k.inst.active_flows, 3);
	fake_die(dead, false);
	assert_int_equal(r.k.inst.active_flows, 2);
	assert_false(heir->ended);
	fake_tick(&r.k, 1000);
	assert_true(heir->out_reset && heir->out_status == SL_ERROR_STALE);
	assert_int_equal(r.k.inst.active_flows, 1);
	assert_int_equal(r.k.inst.counters[SL_CNT_BAD_MESSAGE], 1);
	assert_non_null(claim(&r, token, 13));
	fake_stop(&r.k);
}

static void wrong_claims(void **state)
{
	uint8_t other[SL_TOKEN_LEN];
	struct fake_flow *heir, *next;
	struct rig r;

	(void)state;
	rig_movable(&r);
	memcpy(other, token, sizeof(other));
	other[15] ^= 1;
	heir = claim(&r, other, r.c->flow.request_id);
	next = claim(&r, token, r.c->flow.request_id + 1);
	fake_tick(&r.k, 1000);
	assert_true(heir->out_reset && next->out_reset);
	memset(other, 0, sizeof(other));
	assert_null(claim(&r, other, r.c->flow.request_id));
	assert_null(fake_take_over(&r.k, r.c->flow.request_id, token, SL_TOKEN_LEN - 1));
	/* a live connection is not given away; of two claims the later one counts */
	heir = claim(&r, token, r.c->flow.request_id);
	next = claim(&r, token, r.c->flow.request_id);
	assert_true(heir->out_reset && !next->ended);
	say(&r, GET "\r\n");
	answer(&r, 200, "", "mine");
	assert_string_equal(body_of(r.c), "mine");
	fake_tick(&r.k, 4000);
	assert_true(next->out_reset && !r.c->ended);
	/* and a claim that dies leaves nothing behind */
	next = claim(&r, token, r.c->flow.request_id);
	fake_die(next, false);
	assert_true(fake_orphan(r.c));
	assert_true(r.c->orphan);
	fake_stop(&r.k);
}

static void without_a_token_it_ends(void **state)
{
	static const uint8_t none[SL_TOKEN_LEN];
	struct rig r;

	(void)state;
	rig_default(&r);
	assert_false(r.c->flow.keeps);
	assert_null(claim(&r, none, r.c->flow.request_id));
	assert_false(fake_orphan(r.c));
	assert_true(r.c->ended);
	fake_stop(&r.k);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(either_comes_first),
		cmocka_unit_test(an_answer_waits_for_the_next_instance),
		cmocka_unit_test(nobody_comes),
		cmocka_unit_test(a_claim_comes_before_its_connection),
		cmocka_unit_test(a_claim_waits_a_little),
		cmocka_unit_test(wrong_claims),
		cmocka_unit_test(without_a_token_it_ends),
	};

	RUN_TESTS(tests);
}
