/* SPDX-License-Identifier: Apache-2.0 */
/* What is negotiated, and with which certificate. */
#include <stdlib.h>
#include <strings.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "layers/tls/tls.h"

/* TLS 1.2: forward secrecy and AEAD only (RFC 9325 section 4.2). AES-128 first: no known weakness, and the cheapest.
 * A client without AES instructions puts ChaCha20 first and gets it. */
static const char ciphers_12[] =
	"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
	"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
	"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
static const char ciphers_13[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
static const char groups[] = "X25519:P-256";
static const unsigned char session_context[] = "swarmline";

static int openssl_fail(struct sl_tls *tls, int err, const char *what, unsigned n)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());

	ERR_clear_error();
	return sl_instance_fail(tls->inst, err, "tls: certificate %u: %s: %s", n + 1, what, reason ? reason : "?");
}

/* RFC 7301: our order decides; the client's list without any of ours is the fatal alert no_application_protocol. */
static int alpn_select(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
		       unsigned in_len, void *arg)
{
	const struct sl_tls *tls = arg;
	unsigned char *found;

	(void)ssl;
	if (SSL_select_next_proto(&found, out_len, tls->alpn, tls->alpn_len, in, in_len) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = found;
	return SSL_TLSEXT_ERR_OK;
}

static void alpn_add(struct sl_tls *tls, enum sl_alpn bit, const char *name)
{
	if (!(tls->conf.alpn_mask & 1 << bit))
		return;
	tls->alpn[tls->alpn_len] = (unsigned char)strlen(name);
	memcpy(tls->alpn + tls->alpn_len + 1, name, strlen(name));
	tls->alpn_len += 1 + (unsigned)strlen(name);
}

static bool name_matches(const char *pattern, const char *name, bool wildcard)
{
	if (!wildcard)
		return !strcasecmp(pattern, name);
	/* "*.example.org" stands for exactly one label (RFC 6125 section 6.4.3) */
	name = strchr(name, '.');
	return name && pattern[0] == '*' && !strcasecmp(pattern + 1, name);
}

SSL_CTX *sl_tls_context_find(const struct sl_tls *tls, const char *name)
{
	for (int wildcard = 0; name && wildcard < 2; wildcard++) {
		for (unsigned i = 0; i < tls->nb_hosts; i++) {
			for (unsigned k = 0; k < tls->hosts[i].nb_names; k++) {
				if (name_matches(tls->hosts[i].names[k], name, wildcard))
					return tls->hosts[i].ctx;
			}
		}
	}
	return tls->hosts[0].ctx;
}

static int server_name(SSL *ssl, int *alert, void *arg)
{
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);

	(void)alert;
	if (!name)
		return SSL_TLSEXT_ERR_NOACK;
	SSL_set_SSL_CTX(ssl, sl_tls_context_find(arg, name));
	return SSL_TLSEXT_ERR_OK;
}

void sl_tls_negotiated(const SSL *ssl, struct sl_flow_open *open)
{
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	const unsigned char *alpn;
	unsigned len;

	open->tls_version = (uint8_t)SSL_version(ssl);   /* 0x0303, 0x0304 */
	SSL_get0_alpn_selected(ssl, &alpn, &len);
	open->alpn = len == 8 ? SL_ALPN_HTTP_1_1 : len == 2 ? SL_ALPN_H2 : SL_ALPN_NONE;
	open->sni_len = (uint8_t)(name ? strnlen(name, sizeof(open->sni)) : 0);
	memset(open->sni, 0, sizeof(open->sni));
	if (name)
		memcpy(open->sni, name, open->sni_len);
}

/* One line of the key log: LABEL, the client's random and the secret, all in hexadecimal. The two secrets of TLS 1.3 that
 * our own record layer goes on with are taken out of it; the rest stays where it is. */
static void secret_take(const SSL *ssl, const char *line)
{
	struct sl_tls_conn *c = SSL_get_app_data(ssl);
	bool client = !strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24), server = !strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24);
	const char *hex = strrchr(line, ' ');
	size_t len;

	if (c && hex && (client || server))
		OPENSSL_hexstr2buf_ex(client ? c->client_secret : c->server_secret, SL_SECRET_MAX, &len, hex + 1, '\0');
}

/* Tickets of TLS 1.3 are the only records under the traffic secrets that OpenSSL sends: they count. */
static void message_seen(int write, int version, int type, const void *msg, size_t len, SSL *ssl, void *arg)
{
	struct sl_tls_conn *c = SSL_get_app_data(ssl);

	(void)version, (void)arg;
	if (c && write && type == SSL3_RT_HANDSHAKE && len && *(const uint8_t *)msg == SSL3_MT_NEWSESSION_TICKET)
		c->nb_tickets++;
}

static SSL_CTX *context_new(struct sl_tls *tls)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

	if (!ctx)
		return NULL;
	SSL_CTX_set_app_data(ctx, tls);
	SSL_CTX_set_security_level(ctx, 2);
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE |
				 SSL_OP_PRIORITIZE_CHACHA);
	SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
			      SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_max_early_data(ctx, 0);   /* could be replayed (RFC 8446 section 8) */
	SSL_CTX_set_tlsext_servername_callback(ctx, server_name);
	SSL_CTX_set_tlsext_servername_arg(ctx, tls);
	SSL_CTX_set_keylog_callback(ctx, secret_take);
	SSL_CTX_set_msg_callback(ctx, message_seen);
	if (tls->alpn_len)
		SSL_CTX_set_alpn_select_cb(ctx, alpn_select, tls);
	/* read_ahead stays off: OpenSSL then never takes more ciphertext than it decrypts, and each read is a copy
	 * from memory anyway */
	if (SSL_CTX_set_min_proto_version(ctx, tls->conf.min_version == 4 ? TLS1_3_VERSION : TLS1_2_VERSION) &&
	    SSL_CTX_set_cipher_list(ctx, ciphers_12) && SSL_CTX_set_ciphersuites(ctx, ciphers_13) &&
	    SSL_CTX_set1_groups_list(ctx, groups) &&
	    SSL_CTX_set_session_id_context(ctx, session_context, sizeof(session_context) - 1) &&
	    !sl_tls_tickets_set(tls, ctx))
		return ctx;
	SSL_CTX_free(ctx);
	return NULL;
}

static int name_add(struct sl_tls_host *h, const ASN1_STRING *text)
{
	const char *p = (const char *)ASN1_STRING_get0_data(text);
	int len = ASN1_STRING_length(text);
	char **names;

	if (len <= 0 || len > 255 || memchr(p, 0, (size_t)len))   /* can be no server name */
		return 0;
	names = reallocarray(h->names, h->nb_names + 1, sizeof(*names));
	if (!names)
		return -ENOMEM;
	h->names = names;
	names[h->nb_names] = strndup(p, (size_t)len);
	return names[h->nb_names] ? (h->nb_names++, 0) : -ENOMEM;
}

/* The subject alternative names; only without any the common name counts (RFC 6125 section 6.4.4). */
static int names_collect(struct sl_tls_host *h, X509 *cert)
{
	GENERAL_NAMES *sans = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	const X509_NAME *subject = X509_get_subject_name(cert);
	int err = 0;

	for (int i = 0; i < sk_GENERAL_NAME_num(sans) && !err; i++) {
		const GENERAL_NAME *g = sk_GENERAL_NAME_value(sans, i);

		if (g->type == GEN_DNS)
			err = name_add(h, g->d.dNSName);
	}
	GENERAL_NAMES_free(sans);
	if (!err && !h->nb_names) {
		int pos = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);

		if (pos >= 0)
			err = name_add(h, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, pos)));
	}
	return err;
}

static void host_clear(struct sl_tls_host *h)
{
	while (h->nb_names)
		free(h->names[--h->nb_names]);
	free(h->names);
	SSL_CTX_free(h->ctx);
	memset(h, 0, sizeof(*h));
}

static bool names_equal(const struct sl_tls_host *a, const struct sl_tls_host *b)
{
	if (!a->nb_names || a->nb_names != b->nb_names)
		return false;
	for (unsigned i = 0; i < a->nb_names; i++) {
		unsigned k = 0;

		while (k < b->nb_names && strcasecmp(a->names[i], b->names[k]))
			k++;
		if (k == b->nb_names)
			return false;
	}
	return true;
}

static bool has_key_type(SSL_CTX *ctx, int type)
{
	int more = SSL_CTX_set_current_cert(ctx, SSL_CERT_SET_FIRST);

	for (; more; more = SSL_CTX_set_current_cert(ctx, SSL_CERT_SET_NEXT)) {
		EVP_PKEY *key = SSL_CTX_get0_privatekey(ctx);

		if (key && EVP_PKEY_get_base_id(key) == type)
			return true;
	}
	return false;
}

/* The host that *names belongs to: an RSA and an EC certificate for the same names share one, and the client's
 * algorithms choose. Takes over what is in *names. Returns NULL: no memory. */
static struct sl_tls_host *host_get(struct sl_tls *tls, struct sl_tls_host *names, int key_type)
{
	struct sl_tls_host *hosts;

	for (unsigned i = 0; i < tls->nb_hosts; i++) {
		if (names_equal(&tls->hosts[i], names) && !has_key_type(tls->hosts[i].ctx, key_type)) {
			host_clear(names);
			return &tls->hosts[i];
		}
	}
	hosts = reallocarray(tls->hosts, tls->nb_hosts + 1, sizeof(*hosts));
	if (!hosts)
		return NULL;
	tls->hosts = hosts;
	names->ctx = context_new(tls);
	if (!names->ctx)
		return NULL;
	hosts[tls->nb_hosts] = *names;
	memset(names, 0, sizeof(*names));
	return &hosts[tls->nb_hosts++];
}

/* Without it OpenSSL would ask for the passphrase on the terminal. */
static int no_passphrase(char *buf, int len, int writing, void *arg)
{
	(void)buf, (void)len, (void)writing, (void)arg;
	return -1;
}

static int pair_add(struct sl_tls *tls, unsigned n, BIO *pem, X509 *leaf, EVP_PKEY *key)
{
	struct sl_tls_host names = { 0 }, *h = NULL;
	X509 *ca;

	if (!names_collect(&names, leaf))
		h = host_get(tls, &names, EVP_PKEY_get_base_id(key));
	host_clear(&names);
	if (!h)
		return sl_instance_fail(tls->inst, ENOMEM, "tls: certificate %u: no memory", n + 1);
	if (SSL_CTX_use_certificate(h->ctx, leaf) != 1)
		return openssl_fail(tls, EINVAL, "refused", n);
	if (SSL_CTX_use_PrivateKey(h->ctx, key) != 1 || SSL_CTX_check_private_key(h->ctx) != 1)
		return openssl_fail(tls, EINVAL, "its private key does not fit", n);
	while ((ca = PEM_read_bio_X509(pem, NULL, no_passphrase, NULL))) {
		if (SSL_CTX_add0_chain_cert(h->ctx, ca) != 1) {
			X509_free(ca);
			return openssl_fail(tls, EINVAL, "a certificate of its chain is refused", n);
		}
	}
	ERR_clear_error();   /* "no start line": the end of the chain */
	return 0;
}

/* pem, key_pem: read-only BIOs on the configuration's bytes */
static int pair_load(struct sl_tls *tls, unsigned n, BIO *pem, BIO *key_pem)
{
	X509 *leaf = pem ? PEM_read_bio_X509_AUX(pem, NULL, no_passphrase, NULL) : NULL;
	EVP_PKEY *key = key_pem ? PEM_read_bio_PrivateKey(key_pem, NULL, no_passphrase, NULL) : NULL;
	int err;

	if (!leaf)
		err = openssl_fail(tls, EINVAL, "not readable as PEM", n);
	else if (!key)
		err = openssl_fail(tls, EINVAL, "its private key is not readable as PEM without a passphrase", n);
	else
		err = pair_add(tls, n, pem, leaf, key);
	X509_free(leaf);
	EVP_PKEY_free(key);
	return err;
}

int sl_tls_contexts_load(struct sl_tls *tls)
{
	const void *cert, *key;
	uint32_t cert_len, key_len;
	int err = 0;

	alpn_add(tls, SL_ALPN_H2, "h2");
	alpn_add(tls, SL_ALPN_HTTP_1_1, "http/1.1");
	for (unsigned n = 0; (cert = sl_instance_conf(tls->inst, SL_CONF_TLS_CERT, n, &cert_len)); n++) {
		BIO *pem, *key_pem;

		key = sl_instance_conf(tls->inst, SL_CONF_TLS_KEY, n, &key_len);
		if (!key) {
			if (!err)
				err = sl_instance_fail(tls->inst, EINVAL, "tls: certificate %u has no key", n + 1);
			continue;
		}
		pem = BIO_new_mem_buf(cert, (int)cert_len);
		key_pem = BIO_new_mem_buf(key, (int)key_len);
		if (!err)
			err = pair_load(tls, n, pem, key_pem);
		BIO_free(pem);
		BIO_free(key_pem);
		sl_instance_conf_wipe(tls->inst, key, key_len);   /* also after an error */
	}
	if (!err && !tls->nb_hosts)
		err = sl_instance_fail(tls->inst, EINVAL, "tls: no certificate is configured");
	return err;
}

void sl_tls_contexts_free(struct sl_tls *tls)
{
	while (tls->nb_hosts)
		host_clear(&tls->hosts[--tls->nb_hosts]);
	free(tls->hosts);
	tls->hosts = NULL;
}
