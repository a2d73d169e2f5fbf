/* SPDX-License-Identifier: Apache-2.0 */
/* Handshakes of the layer tls: versions, ciphers, certificates by name, ALPN; and its configuration. */
#include "tls_rig.h"

static void handshake_check(struct world *w, int version, uint8_t minor)
{
	static const unsigned char alpn[] = "\x08http/1.1";
	struct sl_flow_open open, want = open_payload();
	struct client c;

	client_open(&c, w, version);
	SSL_set_tlsext_host_name(c.ssl, "some.example");
	SSL_set_alpn_protos(c.ssl, alpn, sizeof(alpn) - 1);
	client_connect(&c);
	assert_int_equal(SSL_version(c.ssl), version);
	want.tls_version = minor;
	want.alpn = SL_ALPN_HTTP_1_1;
	want.sni_len = 12;
	memset(want.sni, 0, sizeof(want.sni));
	memcpy(want.sni, "some.example", 12);
	assert_int_equal(c.back->msg_len, sizeof(open));
	memcpy(&open, c.back->msg, sizeof(open));
	assert_memory_equal(&open, &want, sizeof(open));
	assert_int_equal(c.back->flow.request_id, c.front->flow.request_id);
	talk(&c);
	assert_int_equal(w->k.inst.active_flows, 1);
	SSL_shutdown(c.ssl);
	pump(&c);
	assert_true(c.back->out_fin);
	fake_send(c.back, NULL, 0, SL_F_FIN);
	assert_true(c.front->out_fin);
	fake_send(c.front, NULL, 0, SL_F_FIN);
	assert_int_equal(w->k.inst.active_flows, 0);
	client_close(&c);
}

static void test_tls_1_3(void **state)
{
	struct world *w = *state;
	uint64_t timed = 0;

	handshake_check(w, TLS1_3_VERSION, 4);
	for (unsigned i = 0; i < SL_LATENCY_MAX; i++)
		timed += w->k.inst.latency[i];
	assert_int_equal(timed, 1);
	assert_int_equal(w->k.inst.counters[SL_CNT_HANDSHAKES], 1);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 0);
	assert_int_equal(w->k.inst.requests, 1);
	assert_int_equal(w->k.inst.bytes_in, 8);
	assert_int_equal(w->k.inst.bytes_out, 6);
}

static void test_tls_1_2(void **state)
{
	handshake_check(*state, TLS1_2_VERSION, 3);
}

/* The client's handshake must end with this alert, FIN and no flow to http. */
static void expect_refused(struct client *c, int alert)
{
	unsigned before = c->w->k.nb_opened;

	SSL_do_handshake(c->ssl);
	ERR_clear_error();
	pump(c);
	assert_false(SSL_is_init_finished(c->ssl));
	if (c->alert != alert)
		fail_msg("alert %d, not %d", c->alert, alert);
	assert_true(c->front->out_fin && !c->front->out_reset);
	assert_int_equal(c->w->k.nb_opened, before);
	fake_send(c->front, "more", 4, SL_F_FIN);   /* thrown away */
	assert_int_equal(c->w->k.inst.active_flows, 0);
	client_close(c);
}

static void test_refused_offers(void **state)
{
	struct world *w = *state;
	struct client c;

	client_open(&c, w, TLS1_1_VERSION);
	SSL_set_security_level(c.ssl, 0);
	expect_refused(&c, SSL_AD_PROTOCOL_VERSION);
	client_open(&c, w, TLS1_2_VERSION);
	SSL_set_cipher_list(c.ssl, "ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA");   /* no AEAD */
	expect_refused(&c, SSL_AD_HANDSHAKE_FAILURE);
	client_open(&c, w, TLS1_2_VERSION);
	SSL_set_cipher_list(c.ssl, "AES128-GCM-SHA256:DHE-RSA-AES128-GCM-SHA256");        /* no ECDHE */
	expect_refused(&c, SSL_AD_HANDSHAKE_FAILURE);
	client_open(&c, w, TLS1_3_VERSION);
	SSL_set1_groups_list(c.ssl, "P-521");
	expect_refused(&c, SSL_AD_HANDSHAKE_FAILURE);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 4);
	assert_int_equal(w->k.inst.counters[SL_CNT_HANDSHAKES], 0);
}

static void test_min_version(void **state)
{
	struct world w;
	struct client c;

	(void)state;
	world_conf(&w);
	w.conf.min_version = 4;
	assert_int_equal(world_start(&w, pairs, 1), 0);
	client_open(&c, &w, TLS1_2_VERSION);
	expect_refused(&c, SSL_AD_PROTOCOL_VERSION);
	client_open(&c, &w, TLS1_3_VERSION);
	client_connect(&c);
	client_close(&c);
	world_stop(&w);
}

static void test_chacha_for_those_who_prefer_it(void **state)
{
	struct client c;

	client_open(&c, *state, TLS1_3_VERSION);
	SSL_set_ciphersuites(c.ssl, "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256");
	client_connect(&c);
	assert_string_equal(SSL_get_cipher_name(c.ssl), "TLS_CHACHA20_POLY1305_SHA256");
	client_close(&c);
	client_open(&c, *state, TLS1_3_VERSION);
	SSL_set_ciphersuites(c.ssl, "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256");
	client_connect(&c);
	assert_string_equal(SSL_get_cipher_name(c.ssl), "TLS_AES_128_GCM_SHA256");
	client_close(&c);
}

static void name_of(struct client *c, char *cn, int len)
{
	X509 *x = SSL_get0_peer_certificate(c->ssl);

	assert_non_null(x);
	X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, cn, len);
}

static void test_server_names(void **state)
{
	static const struct {
		const char *asked, *got;
	} rows[] = {
		{NULL, "default"}, {"nobody.example.com", "default"}, {"default", "default"}, {"example.org", "wild"},
		{"a.example.org", "wild"}, {"A.EXAMPLE.ORG", "wild"}, {"www.example.org", "exact"},
		{"WWW.example.ORG", "exact"}, {"a.b.example.org", "default"}, {"10.77.0.10", "default"},
		{"wild", "default"}, {".example.org", "wild"},
		{"xexample.org", "default"}, {"*.example.org", "wild"},
	};
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world w;

	(void)state;
	world_conf(&w);
	assert_int_equal(world_start(&w, pairs, 3), 0);
	for (unsigned i = 0; i < 2 * sl_nb(rows); i++) {
		struct client c;
		char cn[64] = "";

		client_open(&c, &w, versions[i % 2]);
		if (rows[i / 2].asked)
			SSL_set_tlsext_host_name(c.ssl, rows[i / 2].asked);
		client_connect(&c);
		name_of(&c, cn, sizeof(cn));
		if (strcmp(cn, rows[i / 2].got))
			fail_msg("%s got the certificate %s", rows[i / 2].asked, cn);
		client_close(&c);
	}
	world_stop(&w);
}

static void test_two_key_types_for_a_name(void **state)
{
	static const struct {
		const char *sigalgs, *got;
	} rows[] = {{"ECDSA+SHA256", "both-ec"}, {"RSA-PSS+SHA256:RSA+SHA256", "both-rsa"}};
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct pair p[3] = {pairs[0], pairs[3], pairs[4]};
	struct world w;

	(void)state;
	world_conf(&w);
	assert_int_equal(world_start(&w, p, 3), 0);
	for (unsigned i = 0; i < 4; i++) {
		struct client c;
		char cn[64] = "";

		client_open(&c, &w, versions[i % 2]);
		SSL_set_tlsext_host_name(c.ssl, "both.example.net");
		SSL_set1_sigalgs_list(c.ssl, rows[i / 2].sigalgs);
		client_connect(&c);
		name_of(&c, cn, sizeof(cn));
		assert_string_equal(cn, rows[i / 2].got);
		client_close(&c);
	}
	world_stop(&w);
}

static void test_of_two_alike_the_first_counts(void **state)
{
	struct pair p[3] = {pairs[0], pairs[1]};
	struct world w;
	struct client c;
	char cn[64] = "";

	(void)state;
	p[2] = pair_make(EVP_EC_gen("P-256"), "twin", "DNS:*.example.org,DNS:example.org", NULL);
	world_conf(&w);
	assert_int_equal(world_start(&w, p, 3), 0);
	client_open(&c, &w, TLS1_3_VERSION);
	SSL_set_tlsext_host_name(c.ssl, "example.org");
	client_connect(&c);
	name_of(&c, cn, sizeof(cn));
	assert_string_equal(cn, "wild");
	client_close(&c);
	world_stop(&w);
	pair_free(&p[2]);
}

static void test_alpn(void **state)
{
	static const struct {
		const char *offer;
		uint8_t mask, got;   /* enum sl_alpn; 255: refused */
	} rows[] = {
		{"\x08http/1.1", 1 << SL_ALPN_HTTP_1_1, SL_ALPN_HTTP_1_1},
		{"\x02h2\x08http/1.1", 1 << SL_ALPN_HTTP_1_1, SL_ALPN_HTTP_1_1},
		{"\x02h2\x08http/1.1", 1 << SL_ALPN_HTTP_1_1 | 1 << SL_ALPN_H2, SL_ALPN_H2},
		{"\x08http/1.1\x02h2", 1 << SL_ALPN_HTTP_1_1 | 1 << SL_ALPN_H2, SL_ALPN_H2},
		{"\x08http/1.0", 1 << SL_ALPN_HTTP_1_1 | 1 << SL_ALPN_H2, 255},
		{"\x02h2", 1 << SL_ALPN_HTTP_1_1, 255},
		{"\x03xyz\x04http", 1 << SL_ALPN_HTTP_1_1, 255},
		{NULL, 1 << SL_ALPN_HTTP_1_1, SL_ALPN_NONE},
		{"\x02h2", 0, SL_ALPN_NONE},
	};

	(void)state;
	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct world w;
		struct client c;

		world_conf(&w);
		w.conf.alpn_mask = rows[i].mask;
		assert_int_equal(world_start(&w, pairs, 2), 0);
		client_open(&c, &w, 0);
		SSL_set_tlsext_host_name(c.ssl, "example.org");
		if (rows[i].offer)
			SSL_set_alpn_protos(c.ssl, (const void *)rows[i].offer, (unsigned)strlen(rows[i].offer));
		if (rows[i].got == 255) {
			expect_refused(&c, SSL_AD_NO_APPLICATION_PROTOCOL);
		} else {
			client_connect(&c);
			assert_int_equal(((const struct sl_flow_open *)(void *)c.back->msg)->alpn, rows[i].got);
			client_close(&c);
		}
		world_stop(&w);
	}
}

static void conf_refused(const struct world *model, const struct pair *p, unsigned nb, const char *words)
{
	struct world w = *model;

	assert_true(world_start(&w, p, nb) < 0);
	if (!strstr(w.k.fail, words))
		fail_msg("\"%s\" does not say \"%s\"", w.k.fail, words);
	fake_stop(&w.k);
}

static void test_bad_configuration(void **state)
{
	struct pair locked = pair_make(EVP_EC_gen("P-256"), "locked", NULL, "secret");
	struct pair weak = pair_make(EVP_RSA_gen(1024), "weak", NULL, NULL);
	struct pair junk = {pairs[0].key, pairs[0].cert, pairs[0].key_len, pairs[0].cert_len};
	struct pair mixed[2] = {pairs[0], pairs[1]}, half = pairs[0];
	struct world w;

	(void)state;
	world_conf(&w);
	conf_refused(&w, NULL, 0, "no certificate");
	mixed[1].key = pairs[2].key;
	mixed[1].key_len = pairs[2].key_len;
	conf_refused(&w, mixed, 2, "certificate 2: its private key does not fit");
	conf_refused(&w, &locked, 1, "without a passphrase");
	conf_refused(&w, &junk, 1, "not readable as PEM");
	half.cert_len /= 2;
	conf_refused(&w, &half, 1, "not readable as PEM");
	conf_refused(&w, &weak, 1, "certificate 1: refused");
	w.nb_keys = 0;
	conf_refused(&w, pairs, 1, "ticket keys");
	pair_free(&locked);
	pair_free(&weak);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_tls_1_3), T(test_tls_1_2), T(test_refused_offers), cmocka_unit_test(test_min_version),
		T(test_chacha_for_those_who_prefer_it), cmocka_unit_test(test_server_names),
		cmocka_unit_test(test_two_key_types_for_a_name), cmocka_unit_test(test_of_two_alike_the_first_counts),
		cmocka_unit_test(test_alpn),
		cmocka_unit_test(test_bad_configuration),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
