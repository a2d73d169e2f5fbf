/* SPDX-License-Identifier: Apache-2.0 */
/* Session tickets (RFC 5077, RFC 8446 section 4.6.1) under keys that the whole pool has, so that any tls instance
 * resumes what another one began. Nothing is kept on the server. The keys come in order: the first encrypts, all
 * decrypt; a ticket of an older key is accepted and replaced. */
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "layers/tls/tls.h"

static int cipher_start(const struct sl_tls *tls, unsigned key, unsigned char *iv, EVP_CIPHER_CTX *cipher,
			EVP_MAC_CTX *mac, int enc)
{
	const struct sl_ticket_key *k = &tls->keys[key];
	void *hmac_key = (void *)(uintptr_t)k->hmac_key;
	OSSL_PARAM params[3];

	params[0] = OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, hmac_key, sizeof(k->hmac_key));
	params[1] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t)"SHA256", 0);
	params[2] = OSSL_PARAM_construct_end();
	return EVP_MAC_CTX_set_params(mac, params) &&
	       EVP_CipherInit_ex(cipher, tls->ticket_cipher, NULL, k->aes_key, iv, enc);
}

/* As SSL_CTX_set_tlsext_ticket_key_evp_cb wants it: 1 use it, 2 use and renew it, 0 no such key (full handshake), -1
 * error. */
static int ticket_key(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
		      int enc)
{
	struct sl_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
	unsigned i = 0;

	if (enc) {
		if (RAND_bytes(iv, EVP_CIPHER_get_iv_length(tls->ticket_cipher)) != 1)
			return -1;
		memcpy(name, tls->keys[0].name, sizeof(tls->keys[0].name));
		return cipher_start(tls, 0, iv, cipher, mac, 1) ? 1 : -1;
	}
	while (i < tls->nb_keys && memcmp(name, tls->keys[i].name, sizeof(tls->keys[i].name)))
		i++;
	if (i == tls->nb_keys)
		return 0;
	if (!cipher_start(tls, i, iv, cipher, mac, 0))
		return -1;
	/* a TLS 1.3 client should use a ticket only once, so it needs the next one */
	return i || SSL_version(ssl) == TLS1_3_VERSION ? 2 : 1;
}

int sl_tls_tickets_load(struct sl_tls *tls)
{
	const struct sl_ticket_key *keys;
	uint32_t len;

	if (!tls->conf.tickets)
		return 0;
	keys = sl_instance_conf(tls->inst, SL_CONF_TLS_TICKETS, 0, &len);
	if (!keys || !len || len % sizeof(*keys) || len > sizeof(tls->keys))
		return sl_instance_fail(tls->inst, EINVAL, "tls: tickets are on, but there are not 1 to %d ticket keys",
					SL_TLS_TICKET_KEYS);
	memcpy(tls->keys, keys, len);
	tls->nb_keys = len / (uint32_t)sizeof(*keys);
	sl_instance_conf_wipe(tls->inst, keys, len);
	tls->ticket_cipher = EVP_CIPHER_fetch(NULL, "AES-256-CBC", NULL);
	return tls->ticket_cipher ? 0 : sl_instance_fail(tls->inst, ENOMEM, "tls: OpenSSL has no AES-256-CBC");
}

int sl_tls_tickets_set(struct sl_tls *tls, SSL_CTX *ctx)
{
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	if (!tls->conf.tickets) {
		SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
		return SSL_CTX_set_num_tickets(ctx, 0) ? 0 : -ENOMEM;
	}
	/* RFC 8446 section 4.6.1: at most seven days */
	SSL_CTX_set_timeout(ctx, sl_min(tls->conf.ticket_lifetime_s, 604800u));
	/* one: each costs a tenth of a handshake, and every connection brings the next (RFC 8446 appendix C.4) */
	if (!SSL_CTX_set_num_tickets(ctx, 1) || !SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, ticket_key))
		return -ENOMEM;
	return 0;
}
