/* SPDX-License-Identifier: Apache-2.0 */
/* Messages to the layer app that are not what they should be; its limits and its configuration. */
#include "app_rig.h"

static void test_body_of_another_length(void **state)
{
	static const struct {
		uint64_t announced;
		size_t first, second;    /* bytes; the second comes with FIN */
	} rows[] = {{10, 11, 0}, {10, 5, 6}, {10, 10, 1}, {10, 0, 9}, {10, 5, 0}, {0, 1, 0}};
	static const char *const targets[] = {"/echo", "/hello.txt"};
	struct world *w = *state;
	uint8_t piece[16] = {0};
	unsigned bad = 0;

	for (unsigned t = 0; t < sl_nb(targets); t++) {
		for (unsigned i = 0; i < sl_nb(rows); i++) {
			struct message m;
			struct fake_flow *ff;

			message_make(&m, SL_HTTP_POST, targets[t], NULL, rows[i].announced);
			ff = fake_open(&w->k, m.data, m.len, 0, NULL);
			if (rows[i].first)
				fake_send(ff, piece, rows[i].first, 0);
			fake_send(ff, piece, rows[i].second, SL_F_FIN);
			assert_true(ff->out_reset);
			assert_int_equal(ff->out_status, SL_ERROR_PROTOCOL);
			assert_int_equal(w->k.inst.counters[SL_CNT_BAD_MESSAGE], ++bad);
		}
	}
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void refused(struct world *w, const struct message *m, uint32_t len, uint32_t flags)
{
	uint64_t before = w->k.inst.counters[SL_CNT_BAD_MESSAGE];
	int status = 0;

	assert_null(fake_open(&w->k, m->data, len, flags, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
	assert_int_equal(w->k.inst.counters[SL_CNT_BAD_MESSAGE], before + 1);
}

static void test_hostile_messages(void **state)
{
	struct world *w = *state;
	struct message m;
	struct sl_http_request *r;
	struct sl_http_field *f;

#define FRESH() (r = message_make(&m, GET, "/hello.txt?q", "range: bytes=0-1\nx: y\n", 0), f = (void *)(r + 1), (void)f)
#define BAD(change) do { FRESH(); change; refused(w, &m, m.len, SL_F_FIN); } while (0)
	BAD(r->magic ^= 1);
	BAD(r->head_len--);
	BAD(r->head_len++);
	BAD(r->head_len = 0);
	BAD(r->head_len = 65535);
	BAD(r->nb_fields = 129);
	BAD(r->nb_fields = 65535);
	BAD(r->nb_fields = 60);
	BAD(r->path_off = r->head_len);
	BAD(r->path_len = 65535);
	BAD((r->path_off = 65535, r->path_len = 65535));
	BAD(r->query_len = r->head_len);
	BAD(r->method_off = 65535);
	BAD(r->authority_off = (__u16)(r->head_len + 1));
	BAD(f[0].name_off = 65535);
	BAD(f[0].name_len = 65535);
	BAD(f[1].value_off = r->head_len);
	BAD(f[1].value_len = 60000);
	BAD(r->body_len = 1);   /* but FIN came with it */
	{
		char fields[129 * 5 + 1];

		for (int i = 0; i < 129; i++)
			memcpy(fields + i * 5, "a: b\n", 6);
		message_make(&m, GET, "/hello.txt", fields, 0);
		refused(w, &m, m.len, SL_F_FIN);
	}
	FRESH();
	for (uint32_t len = 0; len < m.len; len++)
		refused(w, &m, len, SL_F_FIN);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.requests, 0);
}

/* Any change of a good message is answered or refused; the sanitizers watch that nothing else happens. */
static void test_mutated_messages(void **state)
{
	struct world *w = *state;
	uint32_t x = 12345;
	struct message good, m;

	message_make(&good, GET, "/sub/%69ndex.html?a",
		     "range: bytes=0-1\nif-none-match: \"a\", W/\"b\"\nif-range: \"q\"\n"
		     "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT\nif-match: *\n", 0);
	for (int i = 0; i < 50000; i++) {
		struct fake_flow *ff;

		m = good;
		for (unsigned n = 1 + i % 3; n; n--) {
			x ^= x << 13, x ^= x >> 17, x ^= x << 5;
			m.data[8 + x % (good.len - 8)] = (uint8_t)(x >> 24);
		}
		((struct sl_http_request *)(void *)m.data)->head_len = (uint16_t)good.len;
		ff = fake_open(&w->k, m.data, m.len, i % 2 ? SL_F_FIN : 0, NULL);
		if (ff && !ff->ended)
			fake_reset(ff, SL_ERROR_CLIENT);
		if (i % 1000 == 0) {   /* so that the fake's list stays short */
			fake_stop(&w->k);
			fake_init(&w->k, &sl_layer_app);
			fake_conf(&w->k, SL_CONF_APP, &w->conf, sizeof(w->conf));
			assert_int_equal(fake_start(&w->k), 0);
		}
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	body_expect(w, "/hello.txt", "0123456789");
}

/* --- the layer --- */

static void test_limits_and_ends(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff[4];
	struct message m;
	int status;

	for (int i = 0; i < 4; i++)
		ff[i] = request_send(w, GET, "/big.bin", NULL);
	message_make(&m, GET, "/", NULL, 0);
	assert_null(fake_open(&w->k, m.data, m.len, SL_F_FIN, &status));   /* max_requests */
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_reset(ff[0], SL_ERROR_CLIENT);
	assert_int_equal(w->k.inst.active_flows, 3);
	ff[0] = request_send(w, GET, "/big.bin", NULL);
	fake_die(ff[1], false);
	assert_int_equal(w->k.inst.active_flows, 3);
	w->k.inst.draining = true;
	sl_layer_app.drain(&w->k.inst);
	ff[3] = fake_open(&w->k, m.data, m.len, SL_F_FIN, &status);   /* its sender had not heard of the drain */
	assert_non_null(ff[3]);
	fake_reset(ff[3], SL_ERROR_CLIENT);
	fake_credit(ff[2], BIG_LEN);   /* what runs is finished */
	big_check(ff[2], 0, BIG_LEN);
	assert_int_equal(w->k.inst.active_flows, 2);   /* these are left to stop() */
}

static void test_trace(void **state)
{
	static const enum sl_trace_point points[] = {SL_TRACE_IN, SL_TRACE_OUT, SL_TRACE_DONE};
	struct world *w = *state;
	struct fake_flow *ff;
	struct message m;

	message_make(&m, GET, "/hello.txt", NULL, 0);
	ff = fake_open(&w->k, m.data, m.len, SL_F_FIN | SL_F_TRACE, NULL);
	assert_int_equal(w->k.nb_traces, sl_nb(points));
	for (unsigned i = 0; i < sl_nb(points); i++) {
		assert_int_equal(w->k.traces[i].point, points[i]);
		assert_int_equal(w->k.traces[i].request_id, ff->flow.request_id);
	}
}

static void conf_refused(struct sl_app_conf *conf, uint32_t len, const char *words)
{
	struct fake k;

	fake_init(&k, &sl_layer_app);
	if (conf)
		fake_conf(&k, SL_CONF_APP, conf, len);
	assert_true(fake_start(&k) < 0);
	assert_non_null(strstr(k.fail, words));
	fake_stop(&k);
}

static void test_bad_configuration(void **state)
{
	struct sl_app_conf conf = {.max_requests = 1, .root = "/nonexistent/folder"};

	(void)state;
	conf_refused(NULL, 0, "configuration");
	conf_refused(&conf, sizeof(conf) - 1, "configuration");
	conf_refused(&conf, sizeof(conf), "/nonexistent/folder was not granted");
	conf.max_requests = 0;
	conf_refused(&conf, sizeof(conf), "configuration");
}

static void test_no_root(void **state)
{
	struct world *w = *state;
	const struct row rows[] = {{GET, "/hello.txt", NULL, 404, NULL, NULL}, {GET, "/", NULL, 404, NULL, NULL}};

	fake_stop(&w->k);
	memset(w->conf.root, 0, sizeof(w->conf.root));
	fake_init(&w->k, &sl_layer_app);
	fake_conf(&w->k, SL_CONF_APP, &w->conf, sizeof(w->conf));
	assert_int_equal(fake_start(&w->k), 0);
	rows_check(w, rows, sl_nb(rows));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_body_of_another_length), T(test_hostile_messages), T(test_mutated_messages),
		T(test_limits_and_ends), T(test_trace), cmocka_unit_test(test_bad_configuration), T(test_no_root),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
