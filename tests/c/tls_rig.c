/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_rig.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>

/* --- certificates --- */

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

struct pair pair_make(EVP_PKEY *key, const char *cn, const char *san, const char *passphrase)
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

void pair_free(struct pair *p)
{
	free(p->cert);
	free(p->key);
}

struct pair pairs[NB_PAIRS];

int pairs_make(void **state)
{
	(void)state;
	pairs[0] = pair_make(EVP_EC_gen("P-256"), "default", NULL, NULL);
	pairs[1] = pair_make(EVP_EC_gen("P-256"), "wild", "DNS:*.example.org,DNS:example.org", NULL);
	pairs[2] = pair_make(EVP_EC_gen("P-256"), "exact", "DNS:www.Example.org,IP:10.77.0.10", NULL);
	pairs[3] = pair_make(EVP_EC_gen("P-256"), "both-ec", "DNS:both.example.net,DNS:other.example.net", NULL);
	pairs[4] = pair_make(EVP_RSA_gen(2048), "both-rsa", "DNS:other.example.net,DNS:both.example.net", NULL);
	return 0;
}

int pairs_free(void **state)
{
	(void)state;
	for (int i = 0; i < NB_PAIRS; i++)
		pair_free(&pairs[i]);
	return 0;
}

/* --- the layer --- */

void world_conf(struct world *w)
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

int world_start(struct world *w, const struct pair *p, unsigned nb)
{
	fake_init(&w->k, &sl_layer_tls);
	w->k.window = SL_FLOW_WINDOW;
	fake_conf(&w->k, SL_CONF_TLS, &w->conf, sizeof(w->conf));
	if (w->nb_keys)
		fake_conf(&w->k, SL_CONF_TLS_TICKETS, w->keys, (uint32_t)(w->nb_keys * sizeof(w->keys[0])));
	w->k.nb_confs = w->nb_keys ? 2 : 1;
	if (w->pool.key[0])
		fake_conf(&w->k, SL_CONF_TLS_POOL, &w->pool, sizeof(w->pool));
	for (unsigned i = 0; i < nb; i++) {
		/* more items than the fake's table has places are not needed */
		fake_conf(&w->k, SL_CONF_TLS_CERT, p[i].cert, (uint32_t)p[i].cert_len);
		fake_conf(&w->k, SL_CONF_TLS_KEY, p[i].key, (uint32_t)p[i].key_len);
	}
	return fake_start(&w->k);
}

void world_stop(struct world *w)
{
	fake_stop(&w->k);
	assert_int_equal(w->k.inst.active_flows, 0);
}

int world_open(void **state)
{
	struct world *w = malloc(sizeof(*w));

	world_conf(w);
	assert_int_equal(world_start(w, pairs, 1), 0);
	*state = w;
	return 0;
}

int world_close(void **state)
{
	struct world *w = *state;

	world_stop(w);
	free(w);
	return 0;
}

/* --- the client --- */

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

struct sl_flow_open open_payload(void)
{
	struct sl_flow_open open = {.client_port = 0x1234, .service = 3, .accepted_ns = 42, .sni_len = 9, .alpn = 9};

	open.client_addr[15] = 7;
	memset(open.sni, 'z', sizeof(open.sni));   /* tcp is not asked about it */
	return open;
}

void client_open(struct client *c, struct world *w, int version)
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

void client_close(struct client *c)
{
	SSL_SESSION_free(c->session);
	SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN);   /* else the session could not be resumed */
	SSL_free(c->ssl);
	SSL_CTX_free(c->ctx);
	ERR_clear_error();
}

void pump(struct client *c)
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

void client_connect(struct client *c)
{
	SSL_do_handshake(c->ssl);
	pump(c);
	assert_true(SSL_is_init_finished(c->ssl));
	assert_non_null(c->back);
}

size_t client_read(struct client *c, char *out, size_t cap)
{
	size_t n, len = 0;

	pump(c);
	while (len < cap && SSL_read_ex(c->ssl, out + len, cap - len, &n) == 1)
		len += n;
	ERR_clear_error();
	return len;
}

void client_write(struct client *c, const char *text)
{
	size_t n;

	assert_int_equal(SSL_write_ex(c->ssl, text, strlen(text), &n), 1);
	pump(c);
}

void expect_back(struct client *c, const char *text)
{
	assert_int_equal(c->back->out_len, strlen(text));
	assert_memory_equal(c->back->out, text, strlen(text));
	fake_out_drop(c->back);
}

void expect_client(struct client *c, const char *text)
{
	char got[256];
	size_t len = client_read(c, got, sizeof(got));

	assert_int_equal(len, strlen(text));
	assert_memory_equal(got, text, len);
}

void talk(struct client *c)
{
	client_write(c, "question");
	expect_back(c, "question");
	fake_send(c->back, "answer", 6, 0);
	expect_client(c, "answer");
}
