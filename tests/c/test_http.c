/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: requests, connections, time. */
#include "http_rig.h"

static void get_is_passed_on_and_answered(void **state)
{
	struct rig r;
	const struct sl_http_request *q;
	(void)state;

	rig_default(&r);
	say(&r, "GET /a/b?c=d HTTP/1.1\r\nHost: Example.com:80\r\nX-One:  two \t\r\nEmpty:\r\n"
		"Connection: x-gone, Keep-Alive\r\n"
		"X-Gone: 1\r\nTE: trailers\r\nKeep-Alive: timeout=3\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n\r\n");
	q = request(&r);
	assert_int_equal(q->magic, SL_HTTP_MAGIC);
	assert_int_equal(q->head_len, app(&r)->msg_len);
	assert_int_equal(q->nb_fields, 2);
	assert_int_equal(q->body_len, 0);
	assert_int_equal(q->method, SL_HTTP_GET);
	assert_int_equal(q->version_minor, 1);
	assert_int_equal(q->tls, 1);
	assert_int_equal(q->service, 3);
	assert_int_equal(q->client_port, 0x1234);
	assert_int_equal(q->client_addr[15], 9);
	assert_true(text_at(q, q->method_off, q->method_len, "GET"));
	assert_true(text_at(q, q->path_off, q->path_len, "/a/b"));
	assert_true(text_at(q, q->query_off, q->query_len, "c=d"));
	assert_true(text_at(q, q->authority_off, q->authority_len, "Example.com:80"));
	assert_true(app_has(&r, "x-one", "two"));
	assert_true(app_has(&r, "empty", ""));
	assert_true(app(&r)->open_flags & SL_F_FIN);
	assert_int_equal(r.c->out_len, 0);

	answer(&r, 200, "content-type: text/plain\n", "hello");
	assert_int_equal(status_of(r.c), 200);
	assert_true(has(r.c, "\r\ncontent-type: text/plain\r\n"));
	assert_true(has(r.c, "\r\ncontent-length: 5\r\n"));
	assert_true(has(r.c, "\r\nserver: swarmline\r\n"));
	assert_true(has(r.c, "\r\ndate: "));
	assert_false(has(r.c, "connection:"));
	assert_string_equal(body_of(r.c), "hello");
	assert_int_equal(r.c->nb_commits, 1);   /* head and body in one entry */
	assert_false(r.c->out_fin);
	assert_true(app(&r)->ended && !app(&r)->out_reset);
	assert_int_equal(r.k.inst.requests, 1);
	assert_int_equal(r.k.inst.active_flows, 1);
	assert_int_equal(r.k.inst.bytes_out, r.c->out_len);
	fake_send(r.c, NULL, 0, SL_F_FIN);
	assert_true(r.c->ended && r.c->out_fin && !r.c->out_reset);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);
}

/* --- what is accepted, cut anywhere --- */

static const char *const good[] = {
	GET "\r\n",
	"\r\n" GET "\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"HEAD /x HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET http://b:81?q HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET HTTPS://[fd77::10]:443/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /%00?a=/?b HTTP/1.1\r\nHost: [fd77::10]:443\r\nX: \344\366\r\n\r\n",
	POST "Content-Length: 5\r\n\r\nhello",
	POST "Content-Length: 0\r\n\r\n",
	POST "Transfer-Encoding: Chunked\r\n\r\n"
		"3\r\nabc\r\n00A;ext=\"v\";x\r\n0123456789\r\n0\r\nTrailer: x\r\nY:\r\n\r\n",
	"PATCH / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc",
	GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
	"M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
};

struct seen {
	uint8_t msg[SL_HTTP_HEAD_MAX];
	uint32_t msg_len;
	uint8_t body[64];
	size_t body_len;
	bool fin, client_fin;
	int status;
};

static void run_cut(const char *text, size_t cut, size_t step, struct seen *seen)
{
	size_t len = strlen(text);
	struct rig r;

	memset(seen, 0, sizeof(*seen));
	rig_default(&r);
	if (cut)
		fake_send(r.c, text, cut, 0);
	for (size_t at = cut; at < len; at += step)
		fake_send(r.c, text + at, sl_min(step, len - at), 0);
	if (r.k.nb_opened != 1)
		fail_msg("not passed on (cut %zu): %s -> %s", cut, text, r.c->out);
	memcpy(seen->msg, app(&r)->msg, seen->msg_len = app(&r)->msg_len);
	memcpy(seen->body, app(&r)->out, seen->body_len = app(&r)->out_len);
	seen->fin = app(&r)->out_fin;
	fake_out_drop(r.c);   /* maybe a 100 */
	answer(&r, 200, "", "");
	seen->status = status_of(r.c);
	seen->client_fin = r.c->out_fin;
	fake_stop(&r.k);
}

static void cut_everywhere(const char *text)
{
	struct seen whole, cut;

	run_cut(text, 0, strlen(text), &whole);
	assert_int_equal(whole.status, 200);
	assert_true(whole.fin);
	for (size_t i = 1; i <= strlen(text); i++) {
		run_cut(text, i, i < strlen(text) ? strlen(text) - i : 1, &cut);
		if (memcmp(&whole, &cut, sizeof(cut)))
			fail_msg("cut at %zu differs: %s", i, text);
	}
	run_cut(text, 0, 1, &cut);
	assert_memory_equal(&whole, &cut, sizeof(cut));
}

static void good_requests_do_not_depend_on_cuts(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sl_nb(good); i++)
		cut_everywhere(good[i]);
}

static void targets_are_split(void **state)
{
	static const struct {
		const char *line, *path, *query, *authority;
	} rows[] = {
		{"GET / HTTP/1.1", "/", "", "h"},
		{"GET /? HTTP/1.1", "/", "", "h"},
		{"GET //x/?a?b HTTP/1.1", "//x/", "a?b", "h"},
		{"GET http://other:8080/p?q HTTP/1.1", "/p", "q", "other:8080"},
		{"GET https://other HTTP/1.1", "/", "", "other"},
		{"GET http://other?q HTTP/1.1", "/", "q", "other"},
		{"OPTIONS http://other HTTP/1.1", "*", "", "other"},
		{"OPTIONS * HTTP/1.1", "*", "", "h"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		const struct sl_http_request *q;
		struct rig r;
		char text[200];

		snprintf(text, sizeof(text), "%s\r\nHost: h\r\n\r\n", rows[i].line);
		rig_default(&r);
		say(&r, text);
		q = request(&r);
		assert_true(text_at(q, q->path_off, q->path_len, rows[i].path));
		assert_true(text_at(q, q->query_off, q->query_len, rows[i].query));
		assert_true(text_at(q, q->authority_off, q->authority_len, rows[i].authority));
		assert_false(app_has(&r, "host", NULL));
		fake_stop(&r.k);
	}
}

/* --- connections --- */

static void pipelined_requests_run_one_by_one(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\n"
		"Content-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
	assert_int_equal(r.k.nb_opened, 1);
	assert_true(fake_backlog(r.c) > 0);
	answer(&r, 200, "", "one");
	assert_int_equal(r.k.nb_opened, 2);
	assert_string_equal((const char *)app(&r)->out, "abc");
	assert_true(app(&r)->out_fin);
	answer(&r, 200, "", "two");
	assert_int_equal(r.k.nb_opened, 3);
	assert_int_equal(fake_backlog(r.c), 0);
	answer(&r, 200, "", "three");
	assert_true(strstr((char *)r.c->out, "one") < strstr((char *)r.c->out, "two"));
	assert_true(strstr((char *)r.c->out, "two") < strstr((char *)r.c->out, "three"));
	assert_int_equal(r.k.inst.requests, 3);
	fake_stop(&r.k);
}

static void keep_alive_follows_the_client(void **state)
{
	static const struct {
		const char *text;
		bool close;
		const char *says;
	} rows[] = {
		{GET "\r\n", false, NULL},
		{GET "Connection: close\r\n\r\n", true, "connection: close\r\n"},
		{GET "Connection: x, CLOSE\r\n\r\n", true, "connection: close\r\n"},
		{"GET / HTTP/1.0\r\n\r\n", true, "connection: close\r\n"},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false, "connection: keep-alive\r\n"},
		{"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", true, "connection: close\r\n"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		answer(&r, 200, "", "x");
		assert_int_equal(r.c->out_fin, rows[i].close);
		assert_true(rows[i].says ? has(r.c, rows[i].says) : !has(r.c, "connection:"));
		fake_stop(&r.k);
	}
}

static void requests_and_connections_are_limited(void **state)
{
	struct sl_http_conf conf = conf_default();
	struct fake_flow *second;
	struct rig r;
	int status;
	(void)state;

	conf.max_requests = 2;
	conf.max_connections = 2;
	rig_start(&r, conf);
	second = rig_connect(&r);
	assert_non_null(second);
	assert_null(fake_open(&r.k, &r.open, sizeof(r.open), 0, &status));
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_reset(second, SL_ERROR_CLIENT);
	assert_non_null(rig_connect(&r));
	assert_null(fake_open(&r.k, &r.open, 10, 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);

	say(&r, GET "\r\n");
	answer(&r, 200, "", "");
	assert_false(has(r.c, "connection: close"));
	say(&r, GET "\r\n");
	answer(&r, 200, "", "");
	assert_true(has(r.c, "connection: close"));
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void half_closed_client_gets_its_answer(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	fake_send(r.c, TEXT(GET "\r\n"), SL_F_FIN);
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(r.c), 200);
	assert_true(has(r.c, "connection: close"));
	assert_true(r.c->ended && !r.c->out_reset);
	fake_stop(&r.k);

	rig_default(&r);
	fake_send(r.c, TEXT("GET / HT"), SL_F_FIN);
	assert_int_equal(status_of(r.c), 400);
	assert_true(r.c->ended);
	fake_stop(&r.k);

	rig_default(&r);
	fake_send(r.c, TEXT(POST "Content-Length: 5\r\n\r\nab"), SL_F_FIN);
	assert_int_equal(status_of(r.c), 400);
	assert_true(app(&r)->out_reset && !app(&r)->out_fin);
	fake_stop(&r.k);
}

static void client_gone_ends_the_request(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	fake_reset(r.c, SL_ERROR_CLIENT);
	assert_true(app(&r)->out_reset);
	assert_int_equal(app(&r)->out_status, SL_ERROR_CLIENT);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);
}

static void drain_closes_after_the_next_answer(void **state)
{
	struct fake_flow *busy, *idle, *late;
	struct rig r;
	(void)state;

	rig_default(&r);
	busy = rig_connect(&r);
	idle = rig_connect(&r);
	say(&r, GET "\r\n");
	r.k.inst.draining = true;
	sl_layer_http.drain(&r.k.inst);
	assert_false(busy->out_fin);
	answer(&r, 200, "", "x");
	assert_true(has(r.c, "connection: close") && r.c->out_fin);
	fake_send(busy, TEXT(GET "\r\n"), 0);   /* was on its way */
	answer(&r, 200, "", "y");
	assert_true(has(busy, "connection: close") && busy->out_fin);
	late = rig_connect(&r);                 /* its sender had not heard of the drain: served all the same */
	assert_non_null(late);
	fake_send(late, TEXT(GET "\r\n"), 0);
	answer(&r, 200, "", "z");
	assert_true(has(late, "connection: close") && late->out_fin);
	assert_false(idle->out_fin);
	fake_tick(&r.k, 3000);
	assert_true(idle->out_fin && !idle->out_reset);
	fake_stop(&r.k);
}

static void wish_to_end_ends_one_connection(void **state)
{
	struct fake_flow *other;
	struct rig r;
	(void)state;

	rig_default(&r);
	other = rig_connect(&r);
	r.c->flow.ops->drain(&r.c->flow);
	say(&r, GET "\r\n");
	answer(&r, 200, "", "x");
	assert_true(has(r.c, "connection: close") && r.c->out_fin);
	fake_send(other, TEXT(GET "\r\n"), 0);
	answer(&r, 200, "", "y");
	assert_false(has(other, "connection: close") || other->out_fin);
	fake_stop(&r.k);
}

static void trace_names_request_and_connection(void **state)
{
	static const enum sl_trace_point points[] = {
		SL_TRACE_IN, SL_TRACE_NEXT, SL_TRACE_BACK, SL_TRACE_OUT, SL_TRACE_DONE,
	};
	struct rig r;
	(void)state;

	rig_default(&r);
	r.c->flow.traced = true;
	say(&r, GET "\r\n");
	assert_true(app(&r)->open_flags & SL_F_TRACE);
	answer(&r, 200, "", "x");
	assert_int_equal(r.k.nb_traces, 5);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(r.k.traces[i].point, points[i]);
		assert_int_equal(r.k.traces[i].request_id, app(&r)->flow.request_id);
		assert_int_equal(r.k.traces[i].parent, r.c->flow.request_id);
	}
	fake_stop(&r.k);

	rig_default(&r);
	r.k.inst.trace_every = 2;
	for (unsigned i = 0; i < 4; i++) {
		say(&r, GET "\r\n");
		assert_int_equal(!!(app(&r)->open_flags & SL_F_TRACE), i & 1);
		answer(&r, 200, "", "x");
	}
	fake_stop(&r.k);
}

/* The largest head that a configuration can allow still makes a message that fits. */
static void largest_head_fits(void **state)
{
	struct sl_http_conf conf = {.max_connections = 1, .max_head_bytes = 1000000, .max_fields = 1000};
	char *text = malloc(HTTP_TEXT_MAX + 1);
	struct rig r;
	int n;
	(void)state;

	n = snprintf(text, HTTP_TEXT_MAX, GET);
	for (unsigned i = 0; i < SL_HTTP_FIELDS_MAX - 2; i++)
		n += snprintf(text + n, (size_t)(HTTP_TEXT_MAX - n), "x:y\r\n");
	n += snprintf(text + n, (size_t)(HTTP_TEXT_MAX - n), "z:");
	memset(text + n, 'z', (size_t)(HTTP_TEXT_MAX - n));
	memcpy(text + HTTP_TEXT_MAX - 4, "\r\n\r\n", 4);
	rig_start(&r, conf);
	fake_send(r.c, text, HTTP_TEXT_MAX, 0);
	assert_int_equal(r.k.nb_opened, 1);
	assert_int_equal(request(&r)->nb_fields, SL_HTTP_FIELDS_MAX - 1);
	assert_true(app(&r)->msg_len <= SL_HTTP_HEAD_MAX);
	answer(&r, 200, "", "");
	memcpy(text + HTTP_TEXT_MAX - 4, "zzzz", 4);   /* one byte more would be too much */
	fake_out_drop(r.c);
	fake_send(r.c, text, HTTP_TEXT_MAX, 0);
	assert_int_equal(status_of(r.c), 431);
	fake_stop(&r.k);
	free(text);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(get_is_passed_on_and_answered),
		cmocka_unit_test(good_requests_do_not_depend_on_cuts),
		cmocka_unit_test(targets_are_split),
		cmocka_unit_test(pipelined_requests_run_one_by_one),
		cmocka_unit_test(keep_alive_follows_the_client),
		cmocka_unit_test(requests_and_connections_are_limited),
		cmocka_unit_test(half_closed_client_gets_its_answer),
		cmocka_unit_test(client_gone_ends_the_request),
		cmocka_unit_test(drain_closes_after_the_next_answer),
		cmocka_unit_test(wish_to_end_ends_one_connection),
		cmocka_unit_test(trace_names_request_and_connection),
		cmocka_unit_test(largest_head_fits),
	};

	RUN_TESTS(tests);
}
