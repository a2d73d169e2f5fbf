/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: what goes wrong around it. */
#include "http_rig.h"

/* --- the next layer fails --- */

static void no_route_is_503(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	r.k.open_err = -ENETUNREACH;
	say(&r, GET "\r\n" GET "\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(has(r.c, "retry-after: 1\r\n"));
	assert_false(r.c->out_fin);
	r.k.open_err = 0;
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 1);
	fake_stop(&r.k);

	rig_default(&r);
	r.k.no_next = true;
	say(&r, POST "Content-Length: 3\r\n\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(r.c->out_fin);   /* its body is on the way */
	fake_stop(&r.k);
}

static void full_ring_makes_requests_wait(void **state)
{
	struct fake_flow *second;
	struct rig r;
	(void)state;

	rig_default(&r);
	second = rig_connect(&r);
	r.k.open_err = -EAGAIN;
	say(&r, POST "Content-Length: 3\r\n\r\nabc");
	fake_send(second, TEXT("GET /second HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
	fake_tick(&r.k, 3000);
	assert_int_equal(r.k.nb_opened, 0);
	assert_int_equal(r.c->out_len, 0);
	r.k.open_err = 0;
	fake_tick(&r.k, 200);
	assert_int_equal(r.k.nb_opened, 2);
	assert_int_equal(request(&r)->path_len, 7);   /* in order: the last one is the second */
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(second), 200);
	fake_stop(&r.k);

	rig_default(&r);   /* one that goes away while waiting, and the expectation of another */
	second = rig_connect(&r);
	r.k.open_err = -EAGAIN;
	say(&r, GET "\r\n");
	fake_send(second, TEXT(POST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"), 0);
	fake_reset(r.c, SL_ERROR_CLIENT);
	assert_int_equal(second->out_len, 0);
	r.k.open_err = 0;
	fake_tick(&r.k, 200);
	assert_int_equal(r.k.nb_opened, 1);
	assert_true(has(second, "100 Continue"));
	fake_stop(&r.k);
}

static void dead_instance(void **state)
{
	static const struct {
		const char *text;
		bool unseen;
		enum sl_request_status status;
		bool retried;
		int then;   /* without a retry */
	} rows[] = {
		{GET "\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{"DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{POST "Content-Length: 0\r\n\r\n", false, SL_ERROR_PEER_GONE, false, 502},
		{POST "Content-Length: 0\r\n\r\n", true, SL_ERROR_PEER_GONE, true, 0},
		{POST "Content-Length: 3\r\n\r\n", true, SL_ERROR_PEER_GONE, true, 0},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", false, SL_ERROR_PEER_GONE, false, 502},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", true, SL_ERROR_PEER_GONE, false, 502},
		{POST "Content-Length: 0\r\n\r\n", false, SL_ERROR_REFUSED, true, 0},
		{POST "Content-Length: 3\r\n\r\na", false, SL_ERROR_REFUSED, false, 503},
		{GET "\r\n", false, SL_ERROR, false, 502},
		{GET "\r\n", false, SL_ERROR_TIMEOUT, false, 504},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct fake_flow *first;
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		first = app(&r);
		first->flow.unseen = rows[i].unseen;
		fake_reset(first, rows[i].status);
		assert_int_equal(r.k.inst.counters[SL_CNT_RETRIED], rows[i].retried);
		if (rows[i].retried) {
			assert_int_equal(r.k.nb_opened, 2);
			assert_int_equal(r.c->out_len, 0);
			assert_int_equal(app(&r)->msg_len, first->msg_len);
			assert_memory_equal(app(&r)->msg, first->msg, first->msg_len);
			assert_int_equal(app(&r)->flow.request_id, first->flow.request_id);
			if (request(&r)->body_len) {
				say(&r, "xyz");
				assert_string_equal((const char *)app(&r)->out, "xyz");
			}
			fake_die(app(&r), true);   /* only once */
			assert_int_equal(r.k.nb_opened, 2);
			assert_int_equal(status_of(r.c), 502);
		} else if (status_of(r.c) != rows[i].then) {
			fail_msg("row %u: %s", i, r.c->out);
		}
		fake_stop(&r.k);
	}
}

static void death_within_the_answer_is_visible(void **state)
{
	uint8_t m[200];
	struct rig r;
	(void)state;

	for (int known = 0; known < 2; known++) {
		rig_default(&r);
		say(&r, GET "\r\n");
		fake_send(app(&r), m, message(m, 200, known ? 9 : UINT64_MAX, "", "hello", 5), 0);
		fake_die(app(&r), false);
		assert_int_equal(r.k.nb_opened, 1);
		assert_true(r.c->out_reset && !r.c->out_fin);
		fake_stop(&r.k);
	}
	rig_default(&r);   /* all of it had come */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 5, "", "hello", 5), 0);
	fake_die(app(&r), false);
	assert_false(r.c->out_reset || r.c->out_fin);
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 2);
	fake_stop(&r.k);
	/* part of a head does not count as an answer */
	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), m, 20, 0);
	fake_die(app(&r), false);
	assert_int_equal(r.k.nb_opened, 2);
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(r.c), 200);
	fake_stop(&r.k);
}

/* --- time --- */

static void slow_clients_are_timed_out(void **state)
{
	struct rig r;
	uint8_t m[200];
	(void)state;

	rig_default(&r);   /* idle: silently */
	fake_tick(&r.k, 4900);
	assert_false(r.c->out_fin);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_fin);
	assert_int_equal(r.c->out_len, 0);
	fake_tick(&r.k, 70000);   /* and who never closes its side is reset */
	assert_true(r.c->out_reset);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* a head that trickles in */
	for (unsigned i = 0; i < 15 && !r.c->out_len; i++) {
		fake_send(r.c, "GET / HTTP/1.1\r\n" + i, 1, 0);
		fake_tick(&r.k, 100);
	}
	assert_int_equal(status_of(r.c), 408);
	assert_true(r.c->out_fin);
	assert_int_equal(r.k.inst.counters[SL_CNT_TIMEOUT], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* a body that stops */
	say(&r, POST "Content-Length: 9\r\n\r\nabc");
	fake_tick(&r.k, 1900);
	say(&r, "d");
	fake_tick(&r.k, 1900);
	assert_int_equal(r.c->out_len, 0);
	fake_tick(&r.k, 300);
	assert_int_equal(status_of(r.c), 408);
	assert_true(r.c->out_fin && app(&r)->out_reset);
	assert_int_equal(app(&r)->out_status, SL_ERROR_TIMEOUT);
	fake_stop(&r.k);

	rig_default(&r);   /* a client that takes nothing */
	r.c->flow.tx_window = 50;
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 100, "", "hello", 5), 0);
	fake_tick(&r.k, 1900);
	fake_credit(r.c, 1);
	fake_tick(&r.k, 1900);
	assert_false(r.c->out_reset);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_reset && app(&r)->out_reset);
	fake_stop(&r.k);

	rig_default(&r);   /* waiting for the application is not the client's fault */
	say(&r, GET "\r\n");
	fake_tick(&r.k, 60000);
	assert_false(r.c->out_fin || r.c->out_reset);
	answer(&r, 200, "", "x");
	fake_tick(&r.k, 4900);
	assert_false(r.c->out_fin);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static uint32_t below(uint32_t *x, size_t n)
{
	*x = *x * 1664525 + 1013904223;
	return (uint32_t)((*x >> 8) % n);
}

/* One thing that happens to the layer, drawn at random. */
static void noise_step(struct rig *r, uint32_t *x)
{
	static const char *const whole[] = {
		GET "\r\n", "HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", CHUNKED "5\r\nhel",
		CHUNKED "3\r\nabc\r\n0\r\n\r\n", POST "Content-Length: 5\r\n\r\nhello",
		POST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", "hello", "lo\r\n0\r\n\r\n",
	};
	static const char *const broken[] = {
		"GET / HTTP/1.1\r\n", "Host: a\r\n", "\r\n", "\r", "\n", " ", ":", "Content-Length: 5\r\n",
		"Transfer-Encoding: chunked\r\n", "5\r\n", "Connection: close\r\n", "a", "x-y: z\r\n",
	};
	const char *piece = below(x, 8) ? whole[below(x, sl_nb(whole))] : broken[below(x, sl_nb(broken))];
	struct fake_flow *to = app(r);
	bool alive = to && !to->ended;
	uint8_t m[300];
	uint32_t len, at, status;
	uint64_t body_len;

	switch (below(x, 12)) {
	case 0: case 1: case 2: case 3:
		if (!r->c->flow.rx_fin)
			fake_send(r->c, piece, strlen(piece), below(x, 40) ? 0 : SL_F_FIN);
		break;
	case 4: case 5: case 6:   /* an answer, mostly a good one, maybe in two parts */
		if (!alive || to->flow.rx_fin)
			break;
		status = below(x, 3) ? 200 : below(x, 8) ? 200 + below(x, 300) : below(x, 700);
		len = below(x, 11);
		body_len = below(x, 6) ? (below(x, 2) ? len : UINT64_MAX) : below(x, 20);
		len = message(m, status, body_len, "a: b\n", "0123456789", len);
		at = below(x, len);
		if (at)
			fake_send(to, m, at, 0);
		fake_send(to, m + at, len - at, below(x, 4) ? SL_F_FIN : 0);
		break;
	case 7: case 8:
		fake_credit(r->c, below(x, 300));
		break;
	case 9:
		r->k.window = below(x, 3) ? 1000 : below(x, 10);
		r->k.open_err = below(x, 4) ? 0 : below(x, 2) ? -EAGAIN : -ENETUNREACH;
		r->k.slot_len = 1 + below(x, 100);
		if (alive)
			fake_credit(to, below(x, 64));
		break;
	case 10:
		if (alive && !below(x, 4))
			fake_die(to, below(x, 2));
		else if (!below(x, 20))
			fake_reset(r->c, SL_ERROR_CLIENT);
		break;
	default:
		fake_tick(&r->k, below(x, 300));
	}
}

/* Requests, answers, windows, slots, deaths and time in any order: nothing may crash, leak or keep a connection
 * (ASan, UBSan). */
static void noise(void **state)
{
	uint32_t x = 12345, answered = 0;
	(void)state;

	for (unsigned round = 0; round < 3000; round++) {
		struct rig r;

		rig_default(&r);
		if (below(&x, 2))
			r.c->flow.tx_window = below(&x, 300);
		for (unsigned step = 0; step < 100 && !r.c->ended; step++)
			noise_step(&r, &x);
		answered += status_of(r.c) == 200;
		if (!r.c->ended)
			fake_reset(r.c, SL_ERROR_CLIENT);
		assert_int_equal(r.k.inst.active_flows, 0);
		assert_true(!app(&r) || app(&r)->ended);
		fake_stop(&r.k);
	}
	assert_true(answered > 300);   /* it was not all refused */
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_route_is_503),
		cmocka_unit_test(full_ring_makes_requests_wait),
		cmocka_unit_test(dead_instance),
		cmocka_unit_test(death_within_the_answer_is_visible),
		cmocka_unit_test(slow_clients_are_timed_out),
		cmocka_unit_test(noise),
	};

	RUN_TESTS(tests);
}
