/* SPDX-License-Identifier: Apache-2.0 */
#include "layers/tls/record.h"

#include <errno.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>

enum { GEN_MAX = 8191 };

int sl_crypto_init(struct sl_crypto *k, struct sl_aead *aead)
{
	k->aead = aead;
	k->state_cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	k->mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	k->hmac = k->mac ? EVP_MAC_CTX_new(k->mac) : NULL;
	return k->state_cipher && k->hmac ? 0 : -ENOMEM;
}

void sl_crypto_free(struct sl_crypto *k)
{
	sl_aead_close(k->aead);
	EVP_CIPHER_free(k->state_cipher);
	EVP_MAC_CTX_free(k->hmac);
	EVP_MAC_free(k->mac);
}

const struct sl_suite *sl_suite_find(uint16_t id)
{
	static const struct sl_suite known[] = {
		{.id = 0x1301, .alg = SL_AEAD_AES_128_GCM, .secret_len = 32, .digest = "SHA256"},
		{.id = 0x1302, .alg = SL_AEAD_AES_256_GCM, .secret_len = 48, .digest = "SHA384"},
		{.id = 0x1303, .alg = SL_AEAD_CHACHA20_POLY1305, .secret_len = 32, .digest = "SHA256"},
	};

	for (unsigned i = 0; i < sl_nb(known); i++)
		if (known[i].id == id)
			return &known[i];
	return NULL;
}

/* --- keys --- */

/* RFC 5869 section 2.3: as no output is longer than the hash, HKDF-Expand is one HMAC. */
bool sl_expand_label(struct sl_crypto *k, const char *digest, const uint8_t *secret, uint32_t secret_len, const char *label,
		     const uint8_t *context, uint8_t *out, uint32_t len)
{
	uint8_t info[64] = {(uint8_t)(len >> 8), (uint8_t)len}, block[EVP_MAX_MD_SIZE];
	uint32_t label_len = (uint32_t)strlen(label), at = 2;
	OSSL_PARAM params[2];
	size_t n = 0;
	bool good;

	info[at++] = (uint8_t)(6 + label_len);
	memcpy(info + at, "tls13 ", 6);
	memcpy(info + at + 6, label, label_len);
	at += 6 + label_len;
	info[at++] = context ? 16 : 0;
	if (context)
		memcpy(info + at, context, 16);
	at += context ? 16 : 0;
	info[at++] = 1;   /* T(1) */
	params[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)(uintptr_t)digest, 0);
	params[1] = OSSL_PARAM_construct_end();
	good = EVP_MAC_init(k->hmac, secret, secret_len, params) && EVP_MAC_update(k->hmac, info, at) &&
	       EVP_MAC_final(k->hmac, block, &n, sizeof(block)) && n >= len;
	if (good)
		memcpy(out, block, len);
	OPENSSL_cleanse(block, sizeof(block));
	return good;
}

static int keys_set(struct sl_half *h, struct sl_crypto *k)
{
	const struct sl_suite *s = h->suite;
	uint8_t key[SL_AEAD_KEY_MAX], iv[SL_AEAD_IV_LEN];
	struct sl_aead_secret secret = {s->alg, h->seals, key};
	bool good;

	if (h->key)
		sl_aead_key_free(h->aead, h->key);
	h->aead = k->aead;
	h->key = NULL;
	good = sl_expand_label(k, s->digest, h->secret, s->secret_len, "key", NULL, key, sl_aead_key_len(s->alg)) &&
	       sl_expand_label(k, s->digest, h->secret, s->secret_len, "iv", NULL, iv, sizeof(iv)) &&
	       !sl_aead_key_make(h->aead, &secret, iv, &h->key);
	OPENSSL_cleanse(key, sizeof(key));
	OPENSSL_cleanse(iv, sizeof(iv));
	h->seq = 0;
	return good ? 0 : -ENOMEM;
}

int sl_half_set(struct sl_half *h, struct sl_crypto *k, const struct sl_suite *suite, const uint8_t *secret, uint16_t gen,
		bool seals)
{
	h->suite = suite;
	h->gen = gen;
	h->seals = seals;
	memcpy(h->secret, secret, suite->secret_len);
	return keys_set(h, k);
}

int sl_half_update(struct sl_half *h, struct sl_crypto *k)
{
	uint8_t next[SL_SECRET_MAX];

	if (h->gen == GEN_MAX || !sl_expand_label(k, h->suite->digest, h->secret, h->suite->secret_len, "traffic upd", NULL,
						  next, h->suite->secret_len))
		return -ENOMEM;
	memcpy(h->secret, next, sizeof(next));
	OPENSSL_cleanse(next, sizeof(next));
	h->gen++;
	return keys_set(h, k);
}

void sl_half_wipe(struct sl_half *h)
{
	if (h->key)
		sl_aead_key_free(h->aead, h->key);   /* wipes it */
	OPENSSL_cleanse(h, sizeof(*h));
}

/* --- records --- */

bool sl_record_seal(struct sl_half *h, uint8_t type, const uint8_t *p, uint32_t len, uint8_t *out)
{
	uint32_t body = len + 1 + SL_RECORD_TAG;
	uint8_t *at = out + SL_RECORD_HEAD;
	struct sl_aead_op op = {
		.key = h->key, .seq = h->seq, .head = out, .in = p, .len = len, .tail = type, .out = at, .tag = at + len + 1,
	};

	out[0] = SL_RECORD_DATA;
	out[1] = out[2] = 3;
	out[3] = (uint8_t)(body >> 8);
	out[4] = (uint8_t)body;
	sl_aead_run(h->aead, &op, 1);
	if (op.status)
		return false;
	h->seq++;
	return true;
}

int sl_record_len(const uint8_t head[SL_RECORD_HEAD])
{
	uint32_t body = (uint32_t)head[3] << 8 | head[4];

	if (head[0] != SL_RECORD_DATA)   /* all is encrypted now (section 5.2); a change_cipher_spec comes too late (section 5) */
		return -SL_ALERT_UNEXPECTED_MESSAGE;
	if (body > SL_RECORD_MAX - SL_RECORD_HEAD)
		return -SL_ALERT_RECORD_OVERFLOW;
	if (body <= SL_RECORD_TAG)
		return -SL_ALERT_BAD_RECORD_MAC;
	return (int)(SL_RECORD_HEAD + body);
}

int sl_record_open(struct sl_half *h, uint8_t *r, uint32_t len, uint8_t *type)
{
	uint8_t *p = r + SL_RECORD_HEAD;
	uint32_t n = len - SL_RECORD_HEAD - SL_RECORD_TAG;
	struct sl_aead_op op = {
		.key = h->key, .seq = h->seq, .head = r, .in = p, .len = n, .tail = SL_AEAD_NO_TAIL, .out = p, .tag = p + n,
	};

	sl_aead_run(h->aead, &op, 1);
	if (op.status)
		return -SL_ALERT_BAD_RECORD_MAC;
	h->seq++;
	/* section 5.4: zeroes behind the content type are padding */
	while (n && !p[n - 1])
		n--;
	if (!n)
		return -SL_ALERT_UNEXPECTED_MESSAGE;
	*type = p[--n];
	return n > SL_RECORD_CONTENT ? -SL_ALERT_RECORD_OVERFLOW : (int)n;
}
