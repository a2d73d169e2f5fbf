/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that go from one tls instance to the next, at any moment: the test plays tcp and http, which keep what they
 * are told to keep, and lets instances die with what they had published or without it. No byte may be lost, doubled or out
 * of order in either direction, and no nonce may ever be used for two plaintexts, not even in what nobody has seen. */
#include "tls_line.h"

static void step(struct line *l)
{
	switch (roll(l, 16)) {
	case 0:
		crash(l);
		take_over(l);
		break;
	case 1:
		if (l->w->k.inst.counters[SL_CNT_MOVED] || l->front->flow.request_id) {
			drain(l);
			take_over(l);
		}
		break;
	case 2:
		SSL_key_update(l->c.ssl, roll(l, 2) ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
		client_say(l);
		break;
	case 3:
	case 4:
		fake_tick(&l->w->k, SL_WHEEL_MS);
		break;
	case 5:
	case 6:
	case 7:
		collect(l);
		break;
	case 8:
		front_collect(l);
		break;
	case 9:
		back_collect(l);
		break;
	case 10:
	case 11:
	case 12:
		client_say(l);
		break;
	default:
		http_say(l);
	}
}

static void test_any_moment(void **state)
{
	(void)state;
	for (unsigned run = 0; run < 60; run++) {
		struct line l;

		line_open(&l, run * 7919 + 1, (int)run % 3);
		for (int i = 0; i < 150; i++)
			step(&l);
		settle(&l);
		line_close(&l);
	}
}

/* Nothing is kept for long, and then an idle connection keeps nothing but its state. */
static void test_idle_ends_keep_nothing(void **state)
{
	struct line l;

	(void)state;
	line_open(&l, 3, 0);
	client_say(&l);
	http_say(&l);
	settle(&l);
	assert_int_equal(l.tcp.kept.bytes, 0);
	assert_int_equal(l.http.kept.bytes, 0);
	line_close(&l);
}

static void test_wrong_states_are_refused(void **state)
{
	struct line l;
	uint8_t *byte;

	(void)state;
	line_open(&l, 4, 0);
	settle(&l);
	instance_end(&l);
	l.w = instance_start();
	assert_null(offered(&l, l.request_id + 1));   /* that of another connection */
	byte = &l.state[roll(&l, l.state_len)];
	*byte ^= 1;
	assert_null(offered(&l, l.request_id));
	*byte ^= 1;
	l.state_len--;
	assert_null(offered(&l, l.request_id));
	l.state_len = 0;
	assert_null(offered(&l, l.request_id));
	assert_null(fake_take_over(&l.w->k, l.request_id, "x", 1));
	assert_int_equal(l.w->k.inst.counters[SL_CNT_BAD_MESSAGE], 5);
	assert_int_equal(l.w->k.inst.active_flows, 0);
	line_close(&l);
}

/* tcp invents marks: that breaks the connection, and nothing else. */
static void test_wrong_marks_break_the_connection(void **state)
{
	static const struct {
		uint64_t got, kept;
	} lies[] = {
		{0, 0},                            /* it has got nothing: http has let go of what is missing */
		{SL_MARK_VALID, 0},
		{UINT64_MAX, UINT64_MAX},          /* more is safe than http has */
		{UINT64_MAX, SL_MARK_VALID | 77},
	};

	(void)state;
	for (unsigned i = 0; i < sl_nb(lies); i++) {
		struct line l;

		line_open(&l, 5 + i, 0);
		client_say(&l);
		http_say(&l);
		settle(&l);
		instance_end(&l);
		l.w = instance_start();
		l.tcp.marks.got = lies[i].got;
		l.tcp.marks.kept = lies[i].kept;
		l.front = offered(&l, l.request_id);
		assert_non_null(l.front);
		l.back = fake_last_opened(&l.w->k);
		http_replay(&l);
		assert_true(l.front->out_reset && l.back->out_reset && !l.back->out_moved);
		assert_int_equal(l.w->k.inst.counters[SL_CNT_MOVE_FAILED], 1);
		line_close(&l);
	}
}

/* A hostile client: after its alert no other instance may go on, and the alert waits until http knows. */
static void test_no_alert_before_http_knows(void **state)
{
	struct line l;

	(void)state;
	line_open(&l, 9, 0);
	settle(&l);
	fake_send(l.front, "\x17\x03\x03\x00\x20 not a record of this connection", 37, 0);
	assert_int_equal(l.front->out_len, 0);
	assert_true(l.back->ack_mark & SL_MARK_END);
	back_collect(&l);
	assert_true(l.http.marks.kept & SL_MARK_END);
	fake_tick(&l.w->k, 2 * SL_WHEEL_MS);
	assert_int_equal(l.front->out_len, 2 + SL_RECORD_EXTRA);
	assert_true(l.front->out_fin && l.back->out_reset);
	instance_end(&l);
	l.w = instance_start();   /* had it died before the reset */
	l.front = offered(&l, l.request_id);
	l.back = fake_last_opened(&l.w->k);
	http_replay(&l);
	assert_true(l.front->out_reset && l.back->out_reset);
	line_close(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_moment), cmocka_unit_test(test_idle_ends_keep_nothing),
		cmocka_unit_test(test_wrong_states_are_refused), cmocka_unit_test(test_wrong_marks_break_the_connection),
		cmocka_unit_test(test_no_alert_before_http_knows),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
