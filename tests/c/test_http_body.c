/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: bodies in both directions and backpressure. */
#include "http_rig.h"

/* --- bodies and backpressure --- */

static void expect_is_answered(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_string_equal((const char *)r.c->out, "HTTP/1.1 100 Continue\r\n\r\n");
	fake_out_drop(r.c);
	say(&r, "abc");
	assert_string_equal((const char *)app(&r)->out, "abc");
	answer(&r, 201, "", "");
	assert_int_equal(status_of(r.c), 201);
	assert_false(r.c->out_fin);
	/* behind another request: the head comes out of the backlog */
	fake_out_drop(r.c);
	say(&r, GET "\r\n" POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	answer(&r, 204, "", "");
	assert_int_equal(r.k.nb_opened, 3);
	assert_true(has(r.c, "\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"));
	fake_stop(&r.k);

	rig_default(&r);   /* the body is there already */
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\na");
	assert_int_equal(r.c->out_len, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* HTTP/1.0 does not know it */
	say(&r, "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_int_equal(r.c->out_len, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* not wanted: nobody to give it to */
	r.k.open_err = -ENETUNREACH;
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void body_waits_for_the_next_layer(void **state)
{
	static const char text[] = CHUNKED "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: x\r\n\r\n";
	(void)state;

	for (uint32_t step = 1; step < 8; step++) {
		struct rig r;

		rig_default(&r);
		r.k.window = 0;
		fake_send(r.c, TEXT(text), 0);
		assert_true(fake_backlog(r.c) > 0);
		assert_int_equal(app(&r)->out_len, 0);
		fake_tick(&r.k, 10000);   /* not the client's fault */
		assert_false(r.c->ended);
		rig_pump(app(&r), step);
		assert_string_equal((const char *)app(&r)->out, "hello world");
		assert_true(app(&r)->out_fin);
		assert_int_equal(fake_backlog(r.c), 0);
		fake_stop(&r.k);
	}
}

static void tiny_chunks_share_a_slot(void **state)
{
	char text[2000] = "";
	struct rig r;
	(void)state;

	for (unsigned i = 0; i < 100; i++)
		strcat(text, "1\r\nx\r\n");
	strcat(text, "0\r\n\r\n");
	rig_default(&r);
	say(&r, CHUNKED);
	say(&r, text);
	assert_int_equal(app(&r)->out_len, 100);
	assert_int_equal(app(&r)->nb_commits, 1);
	assert_true(app(&r)->out_fin);
	fake_stop(&r.k);
}

/* An answer of 300 bytes in pieces to a client that takes step bytes at a time. */
static void slow_reader(uint32_t step, bool chunked)
{
	uint8_t m[400];
	char body[301];
	uint32_t len;
	struct rig r;

	for (unsigned i = 0; i < 300; i++)
		body[i] = (char)('a' + i % 26);
	body[300] = 0;
	rig_default(&r);
	r.c->flow.tx_window = 0;
	say(&r, GET "\r\n" "GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
	len = message(m, 200, chunked ? UINT64_MAX : 300, "", body, 100);
	fake_send(app(&r), m, len, 0);
	fake_send(app(&r), body + 100, 200, SL_F_FIN);
	assert_int_equal(r.k.nb_opened, 1);
	rig_pump(r.c, step);
	assert_int_equal(r.k.nb_opened, 2);
	if (!chunked) {
		assert_string_equal(body_of(r.c), body);
	} else {   /* decode it again */
		struct http_body b;
		uint8_t out[400];
		uint32_t made;

		sl_http_body_init(&b, UINT64_MAX, 0);
		len = (uint32_t)strlen(body_of(r.c));
		assert_int_equal(sl_http_body_decode(&b, (const void *)body_of(r.c), len, out, sizeof(out), &made), len);
		assert_true(sl_http_body_ended(&b));
		assert_int_equal(made, 300);
		assert_memory_equal(out, body, 300);
	}
	fake_stop(&r.k);
}

static void answer_waits_for_the_client(void **state)
{
	(void)state;
	for (uint32_t step = 1; step < 40; step++) {
		slow_reader(step, false);
		slow_reader(step, true);
	}
}

static void errors_wait_for_the_client(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	r.c->flow.tx_window = 0;
	say(&r, "GET / HTTP/1.1\r\n\r\n");
	assert_int_equal(r.c->out_len, 0);
	rig_pump(r.c, 1);
	assert_int_equal(status_of(r.c), 400);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void bodies_of_megabytes_pass_unchanged(void **state)
{
	enum { LEN = 900001 };
	uint8_t *body = malloc(LEN), m[100];
	char head[200];
	struct rig r;
	uint32_t n;
	(void)state;

	for (uint32_t i = 0; i < LEN; i++)
		body[i] = (uint8_t)(i * 2654435761u >> 24);
	rig_default(&r);
	n = (uint32_t)snprintf(head, sizeof(head), POST "Content-Length: %u\r\n\r\n", LEN);
	fake_send(r.c, head, n, 0);
	for (uint32_t at = 0; at < LEN; at += 16384)
		fake_send(r.c, body + at, sl_min(16384u, LEN - at), 0);
	assert_int_equal(app(&r)->out_len, LEN);
	assert_memory_equal(app(&r)->out, body, LEN);
	fake_send(app(&r), m, message(m, 200, LEN, "", "", 0), 0);
	for (uint32_t at = 0; at < LEN; at += 18432)
		fake_send(app(&r), body + at, sl_min(18432u, LEN - at), 0);
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_memory_equal(body_of(r.c), body, LEN);
	assert_int_equal(r.c->out_len - (size_t)(body_of(r.c) - (char *)r.c->out), LEN);
	fake_stop(&r.k);
	free(body);
}

static void echo_streams_both_ways(void **state)
{
	uint8_t m[100];
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, CHUNKED "3\r\nabc\r\n");
	fake_send(app(&r), m, message(m, 200, UINT64_MAX, "", "abc", 3), 0);
	assert_true(has(r.c, "3\r\nabc\r\n"));
	say(&r, "2\r\nde\r\n0\r\n\r\n");
	assert_true(app(&r)->out_fin);
	fake_send(app(&r), "de", 2, SL_F_FIN);
	assert_string_equal(body_of(r.c), "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
	assert_false(r.c->out_fin);
	fake_stop(&r.k);
}

static void bad_body_within_the_answer(void **state)
{
	uint8_t m[100];
	struct rig r;
	(void)state;

	rig_default(&r);   /* too late for a status: the client sees the cut */
	say(&r, CHUNKED "3\r\nabc\r\n");
	fake_send(app(&r), m, message(m, 200, UINT64_MAX, "", "abc", 3), 0);
	say(&r, "nonsense");
	assert_int_equal(status_of(r.c), 200);
	assert_true(r.c->out_reset && app(&r)->out_reset);
	assert_int_equal(r.k.inst.counters[SL_CNT_CLIENT_ERROR], 1);
	fake_stop(&r.k);
}

static void chunked_body_above_the_limit(void **state)
{
	struct sl_http_conf conf = conf_default();
	struct rig r;
	(void)state;

	conf.max_body_bytes = 5;
	rig_start(&r, conf);
	say(&r, CHUNKED "3\r\nabc\r\n2\r\nde\r\n");
	assert_int_equal(r.c->out_len, 0);
	say(&r, "1\r\nf\r\n");
	assert_int_equal(status_of(r.c), 413);
	assert_true(r.c->out_fin && app(&r)->out_reset);
	fake_stop(&r.k);
}

static void early_answer(void **state)
{
	char head[200], *rest = calloc(1, 200000);
	struct rig r;
	(void)state;

	memset(rest, 'x', 200000);
	rig_default(&r);   /* a short rest is read and the connection stays */
	say(&r, POST "Content-Length: 1000\r\n\r\nabc");
	answer(&r, 403, "", "no");
	assert_int_equal(status_of(r.c), 403);
	assert_true(app(&r)->out_reset);
	assert_false(r.c->out_fin);
	fake_send(r.c, rest, 997, 0);
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 2);
	fake_stop(&r.k);

	rig_default(&r);   /* a long one is announced to end the connection */
	snprintf(head, sizeof(head), POST "Content-Length: 200000\r\n\r\n");
	say(&r, head);
	answer(&r, 403, "", "no");
	assert_true(has(r.c, "connection: close") && r.c->out_fin);
	fake_send(r.c, rest, 200000, 0);
	assert_false(r.c->out_reset);   /* a reset could destroy the answer on its way */
	fake_stop(&r.k);

	rig_default(&r);   /* so is one of unknown length, once it gets long */
	say(&r, CHUNKED "30d40\r\n");
	answer(&r, 403, "", "no");
	fake_send(r.c, rest, 200000, 0);
	assert_true(r.c->out_fin);
	assert_int_equal(r.k.nb_opened, 1);
	fake_stop(&r.k);

	rig_default(&r);   /* the client may never send what it asked 100 for */
	r.k.window = 0;
	r.c->flow.tx_window = 0;
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	answer(&r, 200, "", "ok");
	fake_credit(r.c, 10000);
	assert_true(has(r.c, "100 Continue") && has(r.c, "200 OK"));
	fake_stop(&r.k);
	free(rest);
}

static void early_answer_of_unknown_length(void **state)
{
	char *rest = calloc(1, 0x4000);
	struct rig r;
	(void)state;

	rig_default(&r);   /* nothing could be known at the time of the answer: ends without announcement */
	say(&r, CHUNKED);
	answer(&r, 403, "", "no");
	assert_false(r.c->out_fin);
	for (unsigned i = 0; i < 5; i++) {
		say(&r, "4000\r\n");
		fake_send(r.c, rest, 0x4000, 0);
		say(&r, "\r\n");
	}
	assert_true(r.c->out_fin && !r.c->out_reset);
	fake_stop(&r.k);

	rig_default(&r);   /* bad framing in what is thrown away */
	say(&r, CHUNKED);
	answer(&r, 403, "", "no");
	say(&r, "nonsense");
	assert_true(r.c->out_fin);
	fake_stop(&r.k);

	rig_default(&r);   /* in its very last byte */
	say(&r, CHUNKED);
	answer(&r, 403, "", "no");
	say(&r, "0\r\n\rX" GET "\r\n");
	assert_true(r.c->out_fin);
	assert_int_equal(r.k.nb_opened, 1);
	fake_stop(&r.k);

	rig_default(&r);   /* the client stops in the middle of it */
	say(&r, CHUNKED);
	answer(&r, 403, "", "no");
	fake_send(r.c, TEXT("3\r\na"), SL_F_FIN);
	assert_true(r.c->ended && !r.c->out_reset);
	fake_stop(&r.k);

	rig_default(&r);   /* or just stops */
	say(&r, CHUNKED);
	answer(&r, 403, "", "no");
	fake_tick(&r.k, 2200);
	assert_true(r.c->out_fin && !r.c->out_reset);
	fake_stop(&r.k);
	free(rest);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(expect_is_answered),
		cmocka_unit_test(body_waits_for_the_next_layer),
		cmocka_unit_test(tiny_chunks_share_a_slot),
		cmocka_unit_test(answer_waits_for_the_client),
		cmocka_unit_test(errors_wait_for_the_client),
		cmocka_unit_test(bodies_of_megabytes_pass_unchanged),
		cmocka_unit_test(echo_streams_both_ways),
		cmocka_unit_test(bad_body_within_the_answer),
		cmocka_unit_test(chunked_body_above_the_limit),
		cmocka_unit_test(early_answer),
		cmocka_unit_test(early_answer_of_unknown_length),
	};

	RUN_TESTS(tests);
}
