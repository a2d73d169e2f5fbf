/* SPDX-License-Identifier: Apache-2.0 */
#include "layers/tls/move.h"

#include <string.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

static EVP_CIPHER_CTX *cipher_new(struct sl_crypto *k, const struct sl_pool_key *pool, const uint8_t *salt, int enc)
{
	static const uint8_t nonce[12];   /* one message under each key */
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint8_t key[32];

	if (ctx && (!sl_expand_label(k, "SHA256", pool->key, sizeof(pool->key), "swarmline", salt, key, sizeof(key)) ||
		    !EVP_CipherInit_ex2(ctx, k->state_cipher, key, nonce, enc, NULL))) {
		EVP_CIPHER_CTX_free(ctx);
		ctx = NULL;
	}
	OPENSSL_cleanse(key, sizeof(key));
	return ctx;
}

bool sl_state_seal(struct sl_crypto *k, const struct sl_pool_key *pool, const struct sl_tls_state *st,
		   uint8_t out[SL_SEALED_LEN])
{
	uint8_t *at = out + SL_SEAL_SALT;
	EVP_CIPHER_CTX *ctx = NULL;
	int n;
	bool good;

	if (RAND_bytes(out, SL_SEAL_SALT) != 1)
		return false;
	ctx = cipher_new(k, pool, out, 1);
	good = ctx && EVP_CipherUpdate(ctx, at, &n, (const uint8_t *)st, sizeof(*st)) && EVP_CipherFinal_ex(ctx, at + n, &n) &&
	       EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, SL_RECORD_TAG, at + sizeof(*st));
	EVP_CIPHER_CTX_free(ctx);
	return good;
}

bool sl_state_unseal(struct sl_crypto *k, const struct sl_pool_key *pool, const void *sealed, uint32_t len,
		     struct sl_tls_state *st)
{
	uint8_t copy[SL_SEALED_LEN], *at = copy + SL_SEAL_SALT;
	EVP_CIPHER_CTX *ctx = NULL;
	bool good = len == sizeof(copy);
	int n;

	if (good)
		memcpy(copy, sealed, sizeof(copy));
	if (good)
		ctx = cipher_new(k, pool, copy, 0);
	good = ctx && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, SL_RECORD_TAG, at + sizeof(*st)) &&
	       EVP_CipherUpdate(ctx, (uint8_t *)st, &n, at, sizeof(*st)) && EVP_CipherFinal_ex(ctx, (uint8_t *)st + n, &n) == 1;
	EVP_CIPHER_CTX_free(ctx);
	if (!good)
		OPENSSL_cleanse(st, sizeof(*st));
	return good;
}
