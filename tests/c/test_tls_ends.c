/* SPDX-License-Identifier: Apache-2.0 */
/* How connections of the layer tls end, and what happens without room, route or time. */
#include "tls_rig.h"

static void test_client_closes_first(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	SSL_write(c.ssl, "last", 4);
	SSL_shutdown(c.ssl);
	pump(&c);
	expect_back(&c, "last");
	assert_true(c.back->out_fin && !c.back->out_reset);
	fake_send(c.front, "after the end", 13, SL_F_FIN);
	fake_send(c.back, "answer", 6, 0);
	expect_client(&c, "answer");
	assert_false(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN);
	fake_send(c.back, NULL, 0, SL_F_FIN);
	expect_client(&c, "");
	assert_true(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN);
	assert_true(c.front->out_fin && !c.front->out_reset && c.front->ended && c.back->ended);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 0);
	client_close(&c);
}

static void test_http_closes_first(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	fake_send(c.back, "answer", 6, SL_F_FIN);
	expect_client(&c, "answer");
	assert_true(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN);
	assert_true(c.front->out_fin);
	client_write(&c, "rest of a body");   /* still goes to http */
	expect_back(&c, "rest of a body");
	assert_int_equal(w->k.inst.active_flows, 1);
	SSL_shutdown(c.ssl);
	pump(&c);
	assert_true(c.back->out_fin && c.back->ended);
	fake_send(c.front, NULL, 0, SL_F_FIN);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
}

static void test_http_closes_first_and_the_client_just_leaves(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	fake_send(c.back, "answer", 6, SL_F_FIN);
	fake_send(c.front, NULL, 0, SL_F_FIN);
	assert_true(c.back->out_reset);
	assert_int_equal(c.back->out_status, SL_ERROR_CLIENT);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 0);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
}

static void test_truncation_is_no_end(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	client_write(&c, "half a requ");
	fake_send(c.front, NULL, 0, SL_F_FIN);
	assert_true(c.back->out_reset && !c.back->out_fin);
	assert_int_equal(c.back->out_status, SL_ERROR_PROTOCOL);
	assert_true(c.front->out_fin && !c.front->out_reset);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 1);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
}

static void test_resets_go_through(void **state)
{
	static const enum sl_request_status ends[] = {SL_ERROR, SL_ERROR_TIMEOUT, SL_ERROR_PEER_GONE};
	struct world *w = *state;

	for (unsigned i = 0; i < sl_nb(ends); i++) {
		struct client c;

		client_open(&c, w, TLS1_3_VERSION);
		client_connect(&c);
		fake_reset(c.back, ends[i]);
		assert_true(c.front->out_reset && !c.front->out_fin);
		assert_int_equal(c.front->out_status, ends[i]);
		expect_client(&c, "");
		assert_false(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN);   /* the client sees the cut */
		client_close(&c);
		client_open(&c, w, TLS1_3_VERSION);
		client_connect(&c);
		fake_reset(c.front, ends[i]);
		assert_true(c.back->out_reset && !c.back->out_fin);
		assert_int_equal(c.back->out_status, ends[i]);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_reset_in_the_handshake(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	fake_reset(c.front, SL_ERROR_CLIENT);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
	client_open(&c, w, TLS1_3_VERSION);
	fake_send(c.front, NULL, 0, SL_F_FIN);
	assert_true(c.front->out_fin);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
}

static void test_close_without_room(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	c.front->flow.tx_window = 10;
	fake_send(c.back, "answer", 6, SL_F_FIN);
	assert_int_equal(c.front->out_len, 0);    /* records go as a whole */
	assert_false(c.front->out_fin);
	fake_credit(c.front, 20);                 /* now there is room for the answer, but not for close_notify */
	assert_int_equal(c.front->out_len, 28);
	assert_false(c.front->out_fin);
	fake_credit(c.front, 100);
	assert_true(c.front->out_fin);
	expect_client(&c, "answer");
	assert_true(SSL_get_shutdown(c.ssl) & SSL_RECEIVED_SHUTDOWN);
	client_close(&c);
}

/* --- time and room --- */

static void test_handshake_timeout(void **state)
{
	struct world *w = *state;
	struct client c, d;

	client_open(&c, w, TLS1_3_VERSION);
	client_open(&d, w, TLS1_3_VERSION);
	client_connect(&d);
	fake_send(c.front, "\x16\x03\x01", 3, 0);
	fake_tick(&w->k, 4900);
	assert_false(c.front->ended);
	fake_tick(&w->k, 300);
	assert_true(c.front->out_reset);
	assert_int_equal(c.front->out_status, SL_ERROR_TIMEOUT);
	assert_int_equal(w->k.inst.counters[SL_CNT_TIMEOUT], 1);
	fake_tick(&w->k, 100000);   /* an idle connection is http's business */
	assert_int_equal(w->k.inst.active_flows, 1);
	client_close(&c);
	client_close(&d);
}

static void test_linger(void **state)
{
	struct world *w = *state;
	struct client c, d;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	fake_send(c.back, "bye", 3, SL_F_FIN);
	fake_tick(&w->k, 59000);
	assert_int_equal(w->k.inst.active_flows, 1);
	client_open(&d, w, TLS1_3_VERSION);
	fake_send(d.front, "GET / HTTP/1.1\r\n\r\n", 18, 0);
	fake_tick(&w->k, 2000);
	assert_true(c.front->out_reset && c.back->out_reset);
	assert_int_equal(w->k.inst.active_flows, 1);
	fake_tick(&w->k, 4000);
	assert_true(d.front->out_reset);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.counters[SL_CNT_TIMEOUT], 0);
	client_close(&c);
	client_close(&d);
}

static void test_open_waits_for_a_slot(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	w->k.open_err = -EAGAIN;
	SSL_do_handshake(c.ssl);
	pump(&c);
	assert_true(SSL_is_init_finished(c.ssl));
	assert_null(c.back);
	client_write(&c, "early bird");
	fake_tick(&w->k, 1000);
	assert_int_equal(w->k.nb_opened, 0);
	w->k.open_err = 0;
	fake_tick(&w->k, 200);
	assert_int_equal(w->k.nb_opened, 1);
	c.back = fake_last_opened(&w->k);
	expect_back(&c, "early bird");
	talk(&c);
	client_close(&c);
	/* but not for ever */
	client_open(&c, w, TLS1_3_VERSION);
	w->k.open_err = -EAGAIN;
	SSL_do_handshake(c.ssl);
	pump(&c);
	fake_tick(&w->k, 5400);
	assert_true(c.front->out_reset);
	assert_int_equal(c.front->out_status, SL_ERROR_TIMEOUT);
	client_close(&c);
}

static void test_no_route(void **state)
{
	struct world *w = *state;
	struct sl_flow_open open = open_payload();
	struct client c;
	int status;

	client_open(&c, w, TLS1_3_VERSION);
	w->k.open_err = -ENETUNREACH;
	SSL_do_handshake(c.ssl);
	pump(&c);
	assert_true(c.front->out_reset);
	assert_int_equal(c.front->out_status, SL_ERROR_REFUSED);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
	w->k.no_next = true;   /* of a service that has no next layer nothing can become */
	assert_null(fake_open(&w->k, &open, sizeof(open), 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
}

static void test_bad_open(void **state)
{
	struct world *w = *state;
	struct sl_flow_open open[2] = {open_payload(), open_payload()};
	int status;

	assert_null(fake_open(&w->k, open, sizeof(open[0]) - 1, 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
	assert_null(fake_open(&w->k, open, sizeof(open[0]) + 1, 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
	assert_null(fake_open(&w->k, open, 0, 0, &status));
	open[0].service = 65535;
	assert_null(fake_open(&w->k, open, sizeof(open[0]), 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
	assert_int_equal(w->k.inst.counters[SL_CNT_BAD_MESSAGE], 4);
	assert_null(fake_open(&w->k, &open[1], sizeof(open[0]), SL_F_FIN, &status));
	assert_int_equal(status, -SL_ERROR_CLIENT);
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_limits(void **state)
{
	struct sl_flow_open open = open_payload();
	struct fake_flow *ff[2];
	struct world w;
	int status;

	(void)state;
	world_conf(&w);
	w.conf.max_connections = 2;
	assert_int_equal(world_start(&w, pairs, 1), 0);
	ff[0] = fake_open(&w.k, &open, sizeof(open), 0, NULL);
	ff[1] = fake_open(&w.k, &open, sizeof(open), 0, NULL);
	assert_true(ff[0] && ff[1]);
	assert_null(fake_open(&w.k, &open, sizeof(open), 0, &status));
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_reset(ff[0], SL_ERROR_CLIENT);
	ff[0] = fake_open(&w.k, &open, sizeof(open), 0, NULL);
	assert_non_null(ff[0]);
	fake_reset(ff[0], SL_ERROR_CLIENT);
	w.k.inst.draining = true;
	sl_layer_tls.drain(&w.k.inst);
	ff[0] = fake_open(&w.k, &open, sizeof(open), 0, &status);   /* its sender had not heard of the drain */
	assert_non_null(ff[0]);
	world_stop(&w);   /* ends the one that is left */
}

static void test_the_wish_to_end_is_handed_on(void **state)
{
	struct client c;

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	assert_false(c.back->flow.drained);
	sl_layer_tls.front->drain(&c.front->flow);
	assert_true(c.back->flow.drained);
	talk(&c);
	client_close(&c);
	client_open(&c, *state, TLS1_3_VERSION);
	sl_layer_tls.front->drain(&c.front->flow);   /* in the handshake */
	client_connect(&c);
	assert_true(c.back->flow.drained);
	talk(&c);
	client_close(&c);
}

static void test_trace(void **state)
{
	static const enum sl_trace_point points[] = {SL_TRACE_IN, SL_TRACE_NEXT, SL_TRACE_BACK, SL_TRACE_OUT,
						     SL_TRACE_DONE};
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	assert_true(c.back->open_flags & SL_F_TRACE);
	talk(&c);
	talk(&c);
	fake_reset(c.front, SL_ERROR_CLIENT);
	assert_int_equal(w->k.nb_traces, sl_nb(points));
	for (unsigned i = 0; i < sl_nb(points); i++) {
		assert_int_equal(w->k.traces[i].point, points[i]);
		assert_int_equal(w->k.traces[i].request_id, c.front->flow.request_id);
	}
	client_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_client_closes_first), T(test_http_closes_first),
		T(test_http_closes_first_and_the_client_just_leaves), T(test_truncation_is_no_end),
		T(test_resets_go_through), T(test_reset_in_the_handshake), T(test_close_without_room),
		T(test_handshake_timeout), T(test_linger), T(test_open_waits_for_a_slot), T(test_no_route),
		T(test_bad_open), cmocka_unit_test(test_limits), T(test_the_wish_to_end_is_handed_on), T(test_trace),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
