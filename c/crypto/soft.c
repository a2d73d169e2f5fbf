/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL, one record after another: a cipher context for each key. */
#include <openssl/evp.h>
#include <stdlib.h>

#include "crypto/aead.h"

struct soft {
	struct sl_aead_engine engine;
	EVP_CIPHER *cipher[SL_AEAD_ALG_NB];    /* fetched once: a fetch costs more than a key */
};

static struct soft *soft_of(struct sl_aead_engine *e)
{
	return sl_container_of(e, struct soft, engine);
}

static int soft_key_make(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	if (!ctx || !EVP_CipherInit_ex2(ctx, soft_of(e)->cipher[secret->alg], secret->key, NULL, secret->seals, NULL)) {
		EVP_CIPHER_CTX_free(ctx);
		return -ENOMEM;
	}
	*ret = ctx;
	return 0;
}

static void soft_key_free(struct sl_aead_engine *e, void *key)
{
	(void)e;
	EVP_CIPHER_CTX_free(key);   /* wipes */
}

static bool begin(EVP_CIPHER_CTX *ctx, const struct sl_aead_op *op)
{
	uint8_t nonce[SL_AEAD_IV_LEN];
	int n;

	sl_aead_nonce(op, nonce);
	return EVP_CipherInit_ex2(ctx, NULL, NULL, nonce, -1, NULL) &&
	       EVP_CipherUpdate(ctx, NULL, &n, op->head, SL_AEAD_HEAD_LEN);
}

static int seal(EVP_CIPHER_CTX *ctx, const struct sl_aead_op *op)
{
	uint8_t tail = (uint8_t)op->tail, *end = op->out + op->len + (op->tail >= 0);
	int n;

	if (!begin(ctx, op) || (op->len && !EVP_CipherUpdate(ctx, op->out, &n, op->in, (int)op->len)) ||
	    (op->tail >= 0 && !EVP_CipherUpdate(ctx, op->out + op->len, &n, &tail, 1)) ||
	    !EVP_CipherFinal_ex(ctx, end, &n) ||
	    !EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, SL_AEAD_TAG_LEN, op->tag))
		return -EIO;
	return 0;
}

static int open(EVP_CIPHER_CTX *ctx, const struct sl_aead_op *op)
{
	int n;

	if (!begin(ctx, op) || !EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, SL_AEAD_TAG_LEN, op->tag) ||
	    (op->len && !EVP_CipherUpdate(ctx, op->out, &n, op->in, (int)op->len)))
		return -EIO;
	return EVP_CipherFinal_ex(ctx, op->out + op->len, &n) == 1 ? 0 : -EBADMSG;
}

static int soft_run(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	uint32_t i;

	(void)e;
	for (i = 0; i < nb; i++)
		ops[i].status = sl_aead_op_seals(&ops[i]) ? seal(keys[i], &ops[i]) : open(keys[i], &ops[i]);
	return 0;
}

static void soft_close(struct sl_aead_engine *e)
{
	struct soft *s = soft_of(e);
	size_t i;

	for (i = 0; i < sl_nb(s->cipher); i++)
		EVP_CIPHER_free(s->cipher[i]);
	free(s);
}

int sl_aead_soft_open(struct sl_aead_engine **ret)
{
	static const struct sl_aead_engine_ops ops = { soft_key_make, soft_key_free, soft_run, soft_close };
	static const char *const names[] = { "AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305" };
	struct soft *s = calloc(1, sizeof(*s));
	size_t i;

	if (!s)
		return -ENOMEM;
	s->engine = (struct sl_aead_engine){ &ops, SL_CRYPTO_SOFTWARE };
	for (i = 0; i < sl_nb(s->cipher); i++) {
		s->cipher[i] = EVP_CIPHER_fetch(NULL, names[i], NULL);
		if (!s->cipher[i]) {
			soft_close(&s->engine);
			return -ENOMEM;
		}
	}
	*ret = &s->engine;
	return 0;
}
