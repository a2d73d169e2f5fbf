/* SPDX-License-Identifier: Apache-2.0 */
/* The tls layer over a fake of the flow library, with OpenSSL as the client. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "fake_flow.h"

extern const struct sl_layer sl_layer_tls;

/* --- certificates --- */

struct pair {
	char *cert, *key;   /* PEM */
	long cert_len, key_len;
};

static char *pem_take(BIO *b, long *len)
{
	char *p, *copy;

	*len = BIO_get_mem_data(b, &p);
	copy = malloc((size_t)*len + 1);
	memcpy(copy, p, (size_t)*len);
	copy[*len] = 0;
	BIO_free(b);
	return copy;
}

static void extension_add(X509 *x, int nid, const char *value)
{
	X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

	assert_non_null(e);
	X509_add_ext(x, e, -1);
	X509_EXTENSION_free(e);
}

/* san: as in openssl.cnf, or NULL */
static struct pair pair_make(EVP_PKEY *key, const char *cn, const char *san, const char *passphrase)
{
	struct pair p;
	X509 *x = X509_new();
	BIO *cert = BIO_new(BIO_s_mem()), *pem = BIO_new(BIO_s_mem());

	X509_set_version(x, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
	X509_gmtime_adj(X509_getm_notBefore(x), -3600);
	X509_gmtime_adj(X509_getm_notAfter(x), 86400);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)cn, -1, -1, 0);
	X509_set_issuer_name(x, X509_get_subject_name(x));
	X509_set_pubkey(x, key);
	if (san)
		extension_add(x, NID_subject_alt_name, san);
	assert_true(X509_sign(x, key, EVP_sha256()) > 0);
	PEM_write_bio_X509(cert, x);
	PEM_write_bio_PrivateKey(pem, key, passphrase ? EVP_aes_128_cbc() : NULL, NULL, 0, NULL,
				 (void *)(uintptr_t)passphrase);
	p.cert = pem_take(cert, &p.cert_len);
	p.key = pem_take(pem, &p.key_len);
	X509_free(x);
	EVP_PKEY_free(key);
	return p;
}

static void pair_free(struct pair *p)
{
	free(p->cert);
	free(p->key);
}

enum { NB_PAIRS = 5 };
static struct pair pairs[NB_PAIRS];

static int pairs_make(void **state)
{
	(void)state;
	pairs[0] = pair_make(EVP_EC_gen("P-256"), "default", NULL, NULL);
	pairs[1] = pair_make(EVP_EC_gen("P-256"), "wild", "DNS:*.example.org,DNS:example.org", NULL);
	pairs[2] = pair_make(EVP_EC_gen("P-256"), "exact", "DNS:www.Example.org,IP:10.77.0.10", NULL);
	pairs[3] = pair_make(EVP_EC_gen("P-256"), "both-ec", "DNS:both.example.net,DNS:other.example.net", NULL);
	pairs[4] = pair_make(EVP_RSA_gen(2048), "both-rsa", "DNS:other.example.net,DNS:both.example.net", NULL);
	return 0;
}

static int pairs_free(void **state)
{
	(void)state;
	for (int i = 0; i < NB_PAIRS; i++)
		pair_free(&pairs[i]);
	return 0;
}

/* --- the layer --- */

struct world {
	struct fake k;
	struct sl_tls_conf conf;
	struct sl_ticket_key keys[3];
	unsigned nb_keys;
};

static void world_conf(struct world *w)
{
	memset(w, 0, sizeof(*w));
	w->conf.handshake_timeout_ms = 5000;
	w->conf.min_version = 3;
	w->conf.tickets = 1;
	w->conf.alpn_mask = 1 << SL_ALPN_HTTP_1_1;
	w->conf.max_connections = 100;
	w->conf.ticket_lifetime_s = 3600;
	w->nb_keys = 1;
	memset(&w->keys[0], 0x11, sizeof(w->keys[0]));
}

static int world_start(struct world *w, const struct pair *p, unsigned nb)
{
	fake_init(&w->k, &sl_layer_tls);
	w->k.window = SL_FLOW_WINDOW;
	fake_conf(&w->k, SL_CONF_TLS, &w->conf, sizeof(w->conf));
	if (w->nb_keys)
		fake_conf(&w->k, SL_CONF_TLS_TICKETS, w->keys, (uint32_t)(w->nb_keys * sizeof(w->keys[0])));
	w->k.nb_confs = w->nb_keys ? 2 : 1;
	for (unsigned i = 0; i < nb; i++) {
		/* more items than the fake's table has places are not needed */
		fake_conf(&w->k, SL_CONF_TLS_CERT, p[i].cert, (uint32_t)p[i].cert_len);
		fake_conf(&w->k, SL_CONF_TLS_KEY, p[i].key, (uint32_t)p[i].key_len);
	}
	return fake_start(&w->k);
}

static void world_stop(struct world *w)
{
	fake_stop(&w->k);
	assert_int_equal(w->k.inst.active_flows, 0);
}

static int world_open(void **state)
{
	struct world *w = malloc(sizeof(*w));

	world_conf(w);
	assert_int_equal(world_start(w, pairs, 1), 0);
	*state = w;
	return 0;
}

static int world_close(void **state)
{
	struct world *w = *state;

	world_stop(w);
	free(w);
	return 0;
}

/* --- the client --- */

struct client {
	struct world *w;
	SSL_CTX *ctx;
	SSL *ssl;
	BIO *in, *out;
	struct fake_flow *front, *back;
	size_t piece;            /* bytes given to the layer at once */
	SSL_SESSION *session;    /* the latest ticket */
	int alert;               /* last alert that came, -1: none */
	bool fin_seen;
};

static int session_new(SSL *ssl, SSL_SESSION *s)
{
	struct client *c = SSL_get_app_data(ssl);

	SSL_SESSION_free(c->session);
	c->session = s;
	return 1;
}

static void info(const SSL *ssl, int where, int ret)
{
	struct client *c = SSL_get_app_data(ssl);

	if (where == SSL_CB_READ_ALERT)
		c->alert = ret & 0xff;
}

static struct sl_flow_open open_payload(void)
{
	struct sl_flow_open open = {.client_port = 0x1234, .service = 3, .accepted_ns = 42, .sni_len = 9, .alpn = 9};

	open.client_addr[15] = 7;
	memset(open.sni, 'z', sizeof(open.sni));   /* tcp is not asked about it */
	return open;
}

static void client_open(struct client *c, struct world *w, int version)
{
	struct sl_flow_open open = open_payload();

	memset(c, 0, sizeof(*c));
	c->w = w;
	c->piece = 16384;
	c->alert = -1;
	c->ctx = SSL_CTX_new(TLS_client_method());
	SSL_CTX_set_session_cache_mode(c->ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(c->ctx, session_new);
	if (version) {
		SSL_CTX_set_min_proto_version(c->ctx, version);
		SSL_CTX_set_max_proto_version(c->ctx, version);
	}
	c->ssl = SSL_new(c->ctx);
	SSL_set_app_data(c->ssl, c);
	SSL_set_info_callback(c->ssl, info);
	c->in = BIO_new(BIO_s_mem());
	c->out = BIO_new(BIO_s_mem());
	SSL_set_bio(c->ssl, c->in, c->out);
	SSL_set_connect_state(c->ssl);
	c->front = fake_open(&w->k, &open, sizeof(open), SL_F_TRACE, NULL);
	assert_non_null(c->front);
}

static void client_close(struct client *c)
{
	SSL_SESSION_free(c->session);
	SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN);   /* else the session could not be resumed */
	SSL_free(c->ssl);
	SSL_CTX_free(c->ctx);
	ERR_clear_error();
}

/* Moves ciphertext both ways until nothing moves any more. */
static void pump(struct client *c)
{
	bool moved = true;
	char *p;

	while (moved) {
		long n = BIO_get_mem_data(c->out, &p), sent = 0;

		moved = false;
		while (sent < n && !fake_backlog(c->front) && !c->front->ended) {
			long len = sl_min(n - sent, (long)c->piece);

			fake_send(c->front, p + sent, (size_t)len, 0);
			sent += len;
			moved = true;
		}
		if (sent) {   /* what is left stays in the BIO */
			char *rest = malloc((size_t)(n - sent) + 1);

			memcpy(rest, p + sent, (size_t)(n - sent));
			(void)BIO_reset(c->out);
			BIO_write(c->out, rest, (int)(n - sent));
			free(rest);
		}
		if (c->front->out_len) {
			size_t len = c->front->out_len;

			BIO_write(c->in, c->front->out, (int)len);
			fake_out_drop(c->front);
			if (!c->front->ended)
				fake_credit(c->front, (uint32_t)len);
			moved = true;
		}
		if (!SSL_is_init_finished(c->ssl)) {
			if (SSL_do_handshake(c->ssl) != 1)
				ERR_clear_error();
			moved = moved || BIO_ctrl_pending(c->out);
		}
	}
	c->back = fake_last_opened(&c->w->k);
}

static void client_connect(struct client *c)
{
	SSL_do_handshake(c->ssl);
	pump(c);
	assert_true(SSL_is_init_finished(c->ssl));
	assert_non_null(c->back);
}

/* Reads what has come; tickets too. Returns the bytes of plaintext. */
static size_t client_read(struct client *c, char *out, size_t cap)
{
	size_t n, len = 0;

	pump(c);
	while (len < cap && SSL_read_ex(c->ssl, out + len, cap - len, &n) == 1)
		len += n;
	ERR_clear_error();
	return len;
}

static void client_write(struct client *c, const char *text)
{
	size_t n;

	assert_int_equal(SSL_write_ex(c->ssl, text, strlen(text), &n), 1);
	pump(c);
}

static void expect_back(struct client *c, const char *text)
{
	assert_int_equal(c->back->out_len, strlen(text));
	assert_memory_equal(c->back->out, text, strlen(text));
	fake_out_drop(c->back);
}

static void expect_client(struct client *c, const char *text)
{
	char got[256];
	size_t len = client_read(c, got, sizeof(got));

	assert_int_equal(len, strlen(text));
	assert_memory_equal(got, text, len);
}

static void talk(struct client *c)
{
	client_write(c, "question");
	expect_back(c, "question");
	fake_send(c->back, "answer", 6, 0);
	expect_client(c, "answer");
}

/* --- handshakes --- */

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

	handshake_check(w, TLS1_3_VERSION, 4);
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

/* --- resumption --- */

/* Connects with *session (may be NULL); gives the new one back. Returns whether it was resumed. */
static bool resume(struct world *w, int version, SSL_SESSION **session)
{
	struct client c;
	bool resumed;
	char none[1];

	client_open(&c, w, version);
	SSL_set_tlsext_host_name(c.ssl, "some.example");
	if (*session)
		SSL_set_session(c.ssl, *session);
	client_connect(&c);
	client_read(&c, none, 1);   /* TLS 1.3 sends tickets after the handshake */
	talk(&c);
	resumed = SSL_session_reused(c.ssl);
	SSL_SESSION_free(*session);
	*session = version == TLS1_3_VERSION ? c.session : SSL_get1_session(c.ssl);
	if (version == TLS1_3_VERSION)
		c.session = NULL;
	client_close(&c);
	return resumed;
}

/* Of the bytes, as if it came from a file */
static SSL_SESSION *session_copy(SSL_SESSION *s)
{
	unsigned char *der = NULL;
	const unsigned char *p;
	int len = i2d_SSL_SESSION(s, &der);
	SSL_SESSION *copy;

	p = der;
	copy = d2i_SSL_SESSION(NULL, &p, len);
	OPENSSL_free(der);
	assert_non_null(copy);
	return copy;
}

static void pool_start(struct world *w, const uint8_t *keys)
{
	world_conf(w);
	for (w->nb_keys = 0; keys[w->nb_keys]; w->nb_keys++)
		memset(&w->keys[w->nb_keys], keys[w->nb_keys], sizeof(w->keys[0]));
	assert_int_equal(world_start(w, pairs, 1), 0);
}

static void resumption_check(int version)
{
	static const uint8_t keys_old[] = {1, 0}, keys_both[] = {2, 1, 0}, keys_new[] = {2, 0};
	static const uint8_t keys_three[] = {3, 2, 1, 0};
	struct world a, b, rotated, later, three;
	SSL_SESSION *s = NULL, *old;

	pool_start(&a, keys_old);
	pool_start(&b, keys_old);
	pool_start(&rotated, keys_both);
	pool_start(&later, keys_new);
	pool_start(&three, keys_three);
	assert_false(resume(&a, version, &s));
	assert_non_null(s);
	assert_true(resume(&b, version, &s));           /* another instance */
	assert_int_equal(b.k.inst.counters[SL_CNT_RESUMED], 1);
	assert_int_equal(b.k.inst.counters[SL_CNT_HANDSHAKES], 1);
	old = session_copy(s);
	assert_true(resume(&three, version, &old));      /* the last of three keys */
	SSL_SESSION_free(old);
	old = session_copy(s);
	assert_true(resume(&rotated, version, &s));      /* old key: accepted, and renewed */
	assert_non_null(s);
	assert_true(resume(&later, version, &s));
	assert_false(resume(&later, version, &old));     /* old key gone: a full handshake */
	SSL_SESSION_free(s);
	SSL_SESSION_free(old);
	world_stop(&a);
	world_stop(&b);
	world_stop(&rotated);
	world_stop(&later);
	world_stop(&three);
}

static void test_resumption_1_3(void **state)
{
	(void)state;
	resumption_check(TLS1_3_VERSION);
}

static void test_resumption_1_2(void **state)
{
	(void)state;
	resumption_check(TLS1_2_VERSION);
}

static void test_tickets_off(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world w;

	(void)state;
	world_conf(&w);
	w.conf.tickets = 0;
	w.nb_keys = 0;
	assert_int_equal(world_start(&w, pairs, 1), 0);
	for (unsigned i = 0; i < 2; i++) {
		SSL_SESSION *s = NULL;

		assert_false(resume(&w, versions[i], &s));
		assert_true(!s || !SSL_SESSION_has_ticket(s));
		if (s)
			assert_false(resume(&w, versions[i], &s));
		SSL_SESSION_free(s);
	}
	world_stop(&w);
}

/* --- bytes --- */

static void test_one_byte_at_a_time(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;

	for (unsigned i = 0; i < 2; i++) {
		struct client c;

		client_open(&c, w, versions[i]);
		c.piece = 1;
		w->k.slot_len = 1;   /* and one byte in each slot */
		client_connect(&c);
		talk(&c);
		talk(&c);
		w->k.slot_len = SL_BIG_LEN;
		client_close(&c);
	}
}

static uint8_t byte_at(size_t i)
{
	return (uint8_t)(i * 13 + i / 509);
}

static void bytes_make(uint8_t *p, size_t from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = byte_at(from + i);
}

static void bytes_check(const uint8_t *p, size_t from, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (p[i] != byte_at(from + i))
			fail_msg("byte %zu is wrong", from + i);
	}
}

enum { BODY_LEN = 1 << 20 };

static void upload(struct world *w, int version)
{
	uint8_t piece[20000];
	size_t sent = 0, got = 0, n;
	struct client c;

	w->k.window = 1000;
	client_open(&c, w, version);
	fake_credit(c.front, SL_FLOW_WINDOW);
	client_connect(&c);
	for (unsigned i = 1; got < BODY_LEN; i++) {
		if (sent < BODY_LEN && !fake_backlog(c.front)) {
			size_t len = sl_min(sizeof(piece), BODY_LEN - sent);

			bytes_make(piece, sent, len);
			assert_int_equal(SSL_write_ex(c.ssl, piece, len, &n), 1);
			sent += n;
			pump(&c);
		}
		/* what http did not take stays in front of tls, not in it: at most one record is in OpenSSL */
		assert_true(!c.back->flow.tx_window || !w->k.slots || !fake_backlog(c.front));
		bytes_check(c.back->out, got, c.back->out_len);
		got += c.back->out_len;
		fake_out_drop(c.back);
		if (i % 40 == 0)
			fake_slots(&w->k, i % 80 ? 0 : UINT32_MAX);
		fake_credit(c.back, i * 37 % 9000 + 1);
		assert_true(i < 100000);
	}
	fake_slots(&w->k, UINT32_MAX);
	assert_int_equal(got, BODY_LEN);
	assert_int_equal(w->k.inst.bytes_in, BODY_LEN);
	client_close(&c);
}

static void download(struct world *w, int version)
{
	uint8_t piece[SL_BIG_LEN];
	static uint8_t in[70000];
	size_t sent = 0, got = 0, n;
	struct client c;

	client_open(&c, w, version);
	client_connect(&c);
	client_read(&c, (char *)in, 1);
	c.front->flow.tx_window = 0;
	for (unsigned i = 1; got < BODY_LEN; i++) {
		if (sent < BODY_LEN && !fake_backlog(c.back)) {
			size_t len = sl_min(i % 3 ? sizeof(piece) : i % 1000 + 1, BODY_LEN - sent);

			bytes_make(piece, sent, len);
			sent += len;
			fake_send(c.back, piece, len, 0);
		}
		if (i % 40 == 0)
			fake_slots(&w->k, i % 80 ? 0 : UINT32_MAX);
		fake_credit(c.front, i * 37 % 9000 + 1);
		BIO_write(c.in, c.front->out, (int)c.front->out_len);
		fake_out_drop(c.front);
		while (SSL_read_ex(c.ssl, in, sizeof(in), &n) == 1) {
			bytes_check(in, got, n);
			got += n;
		}
		ERR_clear_error();
		assert_true(i < 100000);
	}
	fake_slots(&w->k, UINT32_MAX);
	assert_int_equal(got, BODY_LEN);
	assert_int_equal(w->k.inst.bytes_out, BODY_LEN);
	client_close(&c);
}

static void test_upload_with_little_room_1_3(void **state)
{
	upload(*state, TLS1_3_VERSION);
}

static void test_upload_with_little_room_1_2(void **state)
{
	upload(*state, TLS1_2_VERSION);
}

static void test_download_with_little_room_1_3(void **state)
{
	download(*state, TLS1_3_VERSION);
}

static void test_download_with_little_room_1_2(void **state)
{
	download(*state, TLS1_2_VERSION);
}

static void test_one_slot_for_one_record(void **state)
{
	struct client c;
	uint8_t body[16384] = {0};
	size_t n;

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	c.front->nb_commits = 0;
	fake_send(c.back, body, sizeof(body), 0);
	assert_int_equal(c.front->nb_commits, 1);
	pump(&c);
	SSL_write_ex(c.ssl, body, sizeof(body), &n);
	SSL_write_ex(c.ssl, "tail", 4, &n);
	c.piece = 1 << 20;
	pump(&c);
	assert_int_equal(c.back->nb_commits, 2);
	assert_int_equal(c.back->out_len, sizeof(body) + 4);
	fake_out_drop(c.back);
	for (int i = 0; i < 10; i++)
		SSL_write_ex(c.ssl, "small", 5, &n);
	pump(&c);
	assert_int_equal(c.back->nb_commits, 3);   /* ten records, one slot */
	assert_int_equal(c.back->out_len, 50);
	client_close(&c);
}

/* --- ends --- */

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
	assert_int_equal(c.front->out_len, 10);   /* the begun record */
	assert_false(c.front->out_fin);
	fake_credit(c.front, 20);                 /* the rest of it, and a piece of close_notify */
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
	assert_null(fake_open(&w.k, &open, sizeof(open), 0, &status));
	assert_int_equal(status, -SL_ERROR_REFUSED);
	world_stop(&w);   /* ends the one that is left */
}

/* --- hostile clients --- */

static void test_not_a_client_hello(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		uint8_t alert;       /* 0: none. What does not even look like TLS would not understand one */
	} rows[] = {
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27, 0},
		{"SSH-2.0-OpenSSH\r\n", 17, 0},
		{"\x17\x03\x03\x00\x04" "data", 9, SSL_AD_UNEXPECTED_MESSAGE},
		{"\x16\x03\x01\x00\x04\x02\x00\x00\x00", 9, SSL_AD_UNEXPECTED_MESSAGE},   /* a ServerHello */
		{"\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9, SSL_AD_DECODE_ERROR},   /* an empty ClientHello */
		{"\x16\x03\x01\x00\x04\x01\xff\xff\xff", 9, SSL_AD_ILLEGAL_PARAMETER},   /* one of 16 MiB */
		{"\x16\x03\x01\x7f\xff", 5, SSL_AD_RECORD_OVERFLOW},
	};
	struct world *w = *state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct client c;

		client_open(&c, w, 0);
		fake_send(c.front, rows[i].bytes, rows[i].len, 0);
		assert_int_equal(c.front->out_len, rows[i].alert ? 7 : 0);
		if (rows[i].alert) {
			assert_int_equal(c.front->out[0], 21);
			assert_int_equal(c.front->out[5], 2);   /* fatal */
			assert_int_equal(c.front->out[6], rows[i].alert);
		}
		assert_true(c.front->out_fin && !c.front->ended);
		fake_send(c.front, "more", 4, SL_F_FIN);
		assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], i + 1);
		assert_int_equal(w->k.inst.active_flows, 0);
		client_close(&c);
	}
}

static uint32_t random_next(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

static void test_garbage(void **state)
{
	struct world *w = *state;
	uint8_t bytes[600];
	uint32_t x = 1;

	for (int i = 0; i < 300; i++) {
		struct client c;

		client_open(&c, w, 0);
		for (unsigned k = 0; k < sizeof(bytes); k++)
			bytes[k] = (uint8_t)random_next(&x);
		if (i % 2) {   /* a record header that is right */
			bytes[0] = 22, bytes[1] = 3, bytes[2] = 1;
			bytes[3] = (uint8_t)(x & 1), bytes[4] = (uint8_t)(x >> 8);
			bytes[5] = (uint8_t)(i % 4 == 1);
		}
		fake_send(c.front, bytes, x % sizeof(bytes) + 1, 0);
		fake_send(c.front, bytes, sizeof(bytes), SL_F_FIN);
		assert_true(c.front->ended && c.front->out_fin);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.nb_opened, 0);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 300);
}

static void test_client_hello_cut_anywhere(void **state)
{
	struct world *w = *state;
	struct client c;
	char *p;
	long n;

	client_open(&c, w, 0);
	SSL_do_handshake(c.ssl);
	ERR_clear_error();
	n = BIO_get_mem_data(c.out, &p);
	for (long i = 0; i < n; i += i < 100 ? 1 : 7) {
		struct client d;

		client_open(&d, w, 0);
		fake_send(d.front, p, (size_t)i, SL_F_FIN);
		assert_true(d.front->ended && d.front->out_fin);
		client_close(&d);
	}
	assert_int_equal(w->k.nb_opened, 0);
	client_close(&c);
	assert_int_equal(w->k.inst.active_flows, 1);
}

static void test_mutated_handshakes(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;
	uint32_t x = 99;

	for (int i = 0; i < 400; i++) {
		struct client c;
		uint8_t copy[4096];
		char *p;

		client_open(&c, w, versions[i % 2]);
		SSL_do_handshake(c.ssl);
		for (int flight = 0; flight < 2 && !c.front->ended; flight++) {
			long n = BIO_get_mem_data(c.out, &p);

			n = sl_min(n, (long)sizeof(copy));
			memcpy(copy, p, (size_t)n);
			(void)BIO_reset(c.out);
			if (n && flight == (i / 2) % 2)
				copy[random_next(&x) % (unsigned long)n] ^= (uint8_t)(1 << x % 8);
			fake_send(c.front, copy, (size_t)n, 0);
			BIO_write(c.in, c.front->out, (int)c.front->out_len);
			fake_out_drop(c.front);
			SSL_do_handshake(c.ssl);
			ERR_clear_error();
		}
		if (!c.front->ended)
			fake_reset(c.front, SL_ERROR_CLIENT);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_broken_record(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;

	for (unsigned i = 0; i < 2; i++) {
		struct client c;
		char *p;
		long n;

		client_open(&c, w, versions[i]);
		client_connect(&c);
		client_write(&c, "good");
		SSL_write(c.ssl, "evil", 4);
		n = BIO_get_mem_data(c.out, &p);
		p[n - 1] ^= 1;
		pump(&c);
		expect_back(&c, "good");
		assert_true(c.back->out_reset);
		assert_int_equal(c.back->out_status, SL_ERROR_PROTOCOL);
		assert_true(c.front->out_fin && !c.front->out_reset);
		expect_client(&c, "");
		assert_int_equal(c.alert, SSL_AD_BAD_RECORD_MAC);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 2);
}

static void test_renegotiation_is_refused(void **state)
{
	struct client c;

	client_open(&c, *state, TLS1_2_VERSION);
	client_connect(&c);
	assert_int_equal(SSL_renegotiate(c.ssl), 1);
	SSL_do_handshake(c.ssl);
	ERR_clear_error();
	for (int i = 0; i < 3; i++) {
		char none[1];
		size_t n;
		char *p;

		n = (size_t)BIO_get_mem_data(c.out, &p);
		fake_send(c.front, p, n, 0);
		(void)BIO_reset(c.out);
		BIO_write(c.in, c.front->out, (int)c.front->out_len);
		fake_out_drop(c.front);
		SSL_read(c.ssl, none, 0);
		SSL_do_handshake(c.ssl);
		ERR_clear_error();
	}
	assert_int_equal(c.alert, SSL_AD_NO_RENEGOTIATION);
	assert_int_equal(((struct world *)*state)->k.inst.counters[SL_CNT_HANDSHAKES], 1);
	client_close(&c);
}

static void test_key_update_without_room(void **state)
{
	struct client c;
	uint8_t filler[200] = {0};

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	expect_client(&c, "");
	c.front->flow.tx_window = 30;
	fake_send(c.back, filler, sizeof(filler), 0);   /* a record is half out */
	assert_int_equal(SSL_key_update(c.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
	client_write(&c, "question");
	expect_back(&c, "question");
	fake_credit(c.front, 10000);
	{
		char got[256];

		assert_int_equal(client_read(&c, got, sizeof(got)), sizeof(filler));
	}
	talk(&c);
	talk(&c);
	client_close(&c);
}

/* --- the rest --- */

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
#define T(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)
	const struct CMUnitTest tests[] = {
		T(test_tls_1_3), T(test_tls_1_2), T(test_refused_offers), T(test_chacha_for_those_who_prefer_it),
		cmocka_unit_test(test_min_version), cmocka_unit_test(test_server_names),
		cmocka_unit_test(test_two_key_types_for_a_name), cmocka_unit_test(test_alpn),
		cmocka_unit_test(test_resumption_1_3), cmocka_unit_test(test_resumption_1_2),
		cmocka_unit_test(test_tickets_off), T(test_one_byte_at_a_time), T(test_upload_with_little_room_1_3),
		T(test_upload_with_little_room_1_2), T(test_download_with_little_room_1_3),
		T(test_download_with_little_room_1_2), T(test_one_slot_for_one_record), T(test_client_closes_first),
		T(test_http_closes_first), T(test_http_closes_first_and_the_client_just_leaves),
		T(test_truncation_is_no_end), T(test_resets_go_through), T(test_reset_in_the_handshake),
		T(test_close_without_room), T(test_handshake_timeout), T(test_linger), T(test_open_waits_for_a_slot),
		T(test_no_route), T(test_bad_open), cmocka_unit_test(test_limits), T(test_not_a_client_hello),
		T(test_garbage), T(test_client_hello_cut_anywhere), T(test_mutated_handshakes), T(test_broken_record),
		T(test_renegotiation_is_refused), T(test_key_update_without_room), T(test_trace),
		cmocka_unit_test(test_bad_configuration),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
