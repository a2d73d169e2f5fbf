/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: answers of the next layer, honest and hostile. */
#include "http_rig.h"

/* --- answers --- */

static void unknown_length_is_chunked_or_closed(void **state)
{
	uint8_t m[200];
	uint32_t len;
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	len = message(m, 200, UINT64_MAX, "", "hello", 5);
	fake_send(app(&r), m, len, 0);
	fake_send(app(&r), "0123456789abcdefXYZ", 19, 0);
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_true(has(r.c, "transfer-encoding: chunked\r\n"));
	assert_false(has(r.c, "content-length"));
	assert_string_equal(body_of(r.c), "5\r\nhello\r\n13\r\n0123456789abcdefXYZ\r\n0\r\n\r\n");
	assert_false(r.c->out_fin);
	fake_stop(&r.k);

	rig_default(&r);
	say(&r, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
	fake_send(app(&r), m, len, SL_F_FIN);
	assert_false(has(r.c, "transfer-encoding") || has(r.c, "content-length"));
	assert_string_equal(body_of(r.c), "hello");
	assert_true(has(r.c, "connection: close") && r.c->out_fin && !r.c->out_reset);
	fake_stop(&r.k);
}

static void some_answers_have_no_body(void **state)
{
	static const struct {
		const char *text;
		unsigned status;
		uint64_t body_len;
		const char *says, *says_not;
	} rows[] = {
		{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 200, 1234, "content-length: 1234\r\n", "transfer-encoding"},
		{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 200, UINT64_MAX, "200 OK", "content-length"},
		{GET "\r\n", 204, 0, "204 No Content", "content-length"},
		{GET "\r\n", 304, 77, "content-length: 77\r\n", "transfer-encoding"},
		{GET "\r\n", 205, 0, "content-length: 0\r\n", "transfer-encoding"},
		{GET "\r\n", 599, 0, "HTTP/1.1 599 \r\n", "transfer-encoding"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		uint8_t m[200];
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		fake_send(app(&r), m, message(m, rows[i].status, rows[i].body_len, "", "", 0), SL_F_FIN);
		assert_true(has(r.c, rows[i].says));
		assert_false(has(r.c, rows[i].says_not));
		assert_string_equal(body_of(r.c), "");
		assert_false(r.c->out_fin || r.c->out_reset);
		say(&r, GET "\r\n");   /* the connection is in step */
		assert_int_equal(r.k.nb_opened, 2);
		fake_stop(&r.k);
	}
}

static void head_in_pieces(void **state)
{
	uint8_t m[200];
	uint32_t len = message(m, 200, 5, "x-a: b\nx-c: d\n", "hello", 5);
	(void)state;

	for (uint32_t cut = 1; cut < len; cut++) {
		struct rig r;

		rig_default(&r);
		say(&r, GET "\r\n");
		fake_send(app(&r), m, cut, 0);
		fake_send(app(&r), m + cut, len - cut, SL_F_FIN);
		assert_true(has(r.c, "x-a: b\r\nx-c: d\r\n"));
		assert_string_equal(body_of(r.c), "hello");
		fake_stop(&r.k);
	}
}

static void length_must_be_kept(void **state)
{
	uint8_t m[200];
	struct rig r;
	(void)state;

	rig_default(&r);   /* short: the client must see it */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 9, "", "hello", 5), SL_F_FIN);
	assert_true(r.c->out_reset);
	assert_int_equal(r.k.inst.counters[SL_CNT_BAD_MESSAGE], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* long: what was announced, then the end */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 4, "", "hello", 5), 0);
	fake_send(app(&r), "more", 4, SL_F_FIN);
	assert_string_equal(body_of(r.c), "hell");
	assert_true(r.c->out_fin && !r.c->out_reset);
	assert_int_equal(r.k.inst.counters[SL_CNT_BAD_MESSAGE], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* a body to HEAD */
	say(&r, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
	fake_send(app(&r), m, message(m, 200, 5, "", "hello", 5), SL_F_FIN);
	assert_string_equal(body_of(r.c), "");
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

enum { LIES = 18 };

/* Number n of the lies that numbers in a message can tell. */
static void lie(uint8_t *m, unsigned n)
{
	static const struct {
		unsigned where;   /* offset in the message */
		uint16_t value;
	} rows[] = {
		{0, 0},                                              /* magic */
		{offsetof(struct sl_http_response, head_len), 0},
		{offsetof(struct sl_http_response, head_len), 23},
		{offsetof(struct sl_http_response, head_len), 24},   /* fields lie behind it */
		{offsetof(struct sl_http_response, head_len), 18433},
		{offsetof(struct sl_http_response, head_len), 65535},
		{offsetof(struct sl_http_response, nb_fields), 129},
		{offsetof(struct sl_http_response, nb_fields), 65535},
		{offsetof(struct sl_http_response, nb_fields), 20},
		{offsetof(struct sl_http_response, status), 0},
		{offsetof(struct sl_http_response, status), 101},
		{offsetof(struct sl_http_response, status), 199},
		{offsetof(struct sl_http_response, status), 600},
		{sizeof(struct sl_http_response) + offsetof(struct sl_http_field, name_off), 65535},
		{sizeof(struct sl_http_response) + offsetof(struct sl_http_field, name_len), 65535},
		{sizeof(struct sl_http_response) + offsetof(struct sl_http_field, name_len), 0},
		{sizeof(struct sl_http_response) + offsetof(struct sl_http_field, value_off), 60000},
		{sizeof(struct sl_http_response) + offsetof(struct sl_http_field, value_len), 40},
	};

	_Static_assert(sl_nb(rows) == LIES, "each row is told once");
	if (n < LIES)
		memcpy(m + rows[n].where, &rows[n].value, 2);
}

static void hostile_answers_become_502(void **state)
{
	static const char *const fields[] = {
		"X-Upper: a\n", "x y: a\n", "x: a\rb\n", "x: \001\n", "x: \177\n", "content-length: 5\n",
		"transfer-encoding: chunked\n",
		"connection: close\n", "keep-alive: x\n", "upgrade: x\n", "trailer: x\n", "a: b\nx:y: c\n",
	};
	(void)state;

	for (unsigned i = 0; i < LIES + sl_nb(fields) + 1; i++) {
		const char *field = "x-a: b\n";
		uint8_t m[300];
		uint32_t len;
		struct rig r;

		rig_default(&r);
		say(&r, GET "\r\n");
		if (i >= LIES && i - LIES < sl_nb(fields))
			field = fields[i - LIES];
		len = message(m, 200, 2, field, "hi", 2);
		lie(m, i);
		if (i == LIES + sl_nb(fields))
			m[len - 3] = 0;   /* NUL in the value */
		fake_send(app(&r), m, len, SL_F_FIN);
		if (status_of(r.c) != 502 || r.c->out_fin)
			fail_msg("row %u: %s", i, r.c->out);
		assert_true(r.k.inst.counters[SL_CNT_BAD_MESSAGE] > 0);
		assert_true(app(&r)->ended);
		say(&r, GET "\r\n");   /* the client is not to blame */
		assert_int_equal(r.k.nb_opened, 2);
		fake_stop(&r.k);
	}
}

static void overlapping_fields_are_bounded(void **state)
{
	static uint8_t m[SL_HTTP_HEAD_MAX];
	struct sl_http_response h = {
		.magic = SL_HTTP_MAGIC, .status = 200, .nb_fields = 128, .head_len = SL_HTTP_HEAD_MAX,
	};
	struct sl_http_field f = {.name_off = 2000, .name_len = 8000, .value_off = 2000, .value_len = 16000};
	struct rig r;
	(void)state;

	memset(m, 'a', sizeof(m));
	memcpy(m, &h, sizeof(h));
	for (unsigned i = 0; i < 128; i++)
		memcpy(m + sizeof(h) + i * sizeof(f), &f, sizeof(f));
	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), m, sizeof(m), SL_F_FIN);
	assert_int_equal(status_of(r.c), 502);
	fake_stop(&r.k);
}

static void empty_answer_is_502(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_int_equal(status_of(r.c), 502);
	fake_stop(&r.k);
}

static void date_is_right(void **state)
{
	static const struct {
		int64_t s;
		const char *text;
	} rows[] = {
		{0, "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"},
		{784111777, "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"},   /* the example of RFC 9110 */
		{951782399, "date: Mon, 28 Feb 2000 23:59:59 GMT\r\n"},
		{951782400, "date: Tue, 29 Feb 2000 00:00:00 GMT\r\n"},
		{4107542399, "date: Sun, 28 Feb 2100 23:59:59 GMT\r\n"},
		{4107542400, "date: Mon, 01 Mar 2100 00:00:00 GMT\r\n"},
		{1798761599, "date: Thu, 31 Dec 2026 23:59:59 GMT\r\n"},
	};
	char text[64];
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		sl_http_date_write(rows[i].s, text);
		assert_string_equal(text, rows[i].text);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(unknown_length_is_chunked_or_closed),
		cmocka_unit_test(some_answers_have_no_body),
		cmocka_unit_test(head_in_pieces),
		cmocka_unit_test(length_must_be_kept),
		cmocka_unit_test(hostile_answers_become_502),
		cmocka_unit_test(overlapping_fields_are_bounded),
		cmocka_unit_test(empty_answer_is_502),
		cmocka_unit_test(date_is_right),
	};

	RUN_TESTS(tests);
}
