/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/aead.h"

#include <openssl/crypto.h>
#include <stdlib.h>

struct sl_aead_key {
	enum sl_aead_alg alg;
	bool seals;
	uint8_t iv[SL_AEAD_IV_LEN];
	void *soft;
	void *fast;               /* NULL: the engine does not have it */
};

struct sl_aead {
	struct sl_aead_engine *soft;
	struct sl_aead_engine *fast;   /* NULL: none */
	bool is_broken, is_closed;
	uint32_t fallbacks, nb_keys;
};

uint32_t sl_aead_key_len(enum sl_aead_alg alg)
{
	return alg == SL_AEAD_AES_128_GCM ? 16 : 32;
}

void sl_aead_nonce(const struct sl_aead_op *op, uint8_t nonce[SL_AEAD_IV_LEN])
{
	uint32_t i;

	memcpy(nonce, op->key->iv, SL_AEAD_IV_LEN);
	for (i = 0; i < 8; i++)
		nonce[SL_AEAD_IV_LEN - 1 - i] ^= (uint8_t)(op->seq >> 8 * i);
}

bool sl_aead_op_seals(const struct sl_aead_op *op)
{
	return op->key->seals;
}

enum sl_crypto_kind sl_aead_kind(const struct sl_aead *a)
{
	return a->fast && !a->is_broken ? a->fast->kind : SL_CRYPTO_SOFTWARE;
}

bool sl_aead_is_broken(const struct sl_aead *a)
{
	return a->is_broken;
}

uint32_t sl_aead_fallbacks(const struct sl_aead *a)
{
	return a->fallbacks;
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

int sl_aead_key_make(struct sl_aead *a, const struct sl_aead_secret *secret, const uint8_t iv[SL_AEAD_IV_LEN],
		     struct sl_aead_key **ret)
{
	struct sl_aead_key *key = calloc(1, sizeof(*key));
	int err = key ? a->soft->ops->key_make(a->soft, secret, &key->soft) : -ENOMEM;

	if (err) {
		free(key);
		return err;
	}
	key->alg = secret->alg;
	key->seals = secret->seals;
	memcpy(key->iv, iv, sizeof(key->iv));
	/* an engine that is broken may be revived; one that has no room for this key does without it */
	if (a->fast && a->fast->ops->key_make(a->fast, secret, &key->fast))
		key->fast = NULL;
	a->nb_keys++;
	*ret = key;
	return 0;
}

static void aead_free(struct sl_aead *a)
{
	if (a->fast)
		a->fast->ops->close(a->fast);
	a->soft->ops->close(a->soft);
	free(a);
}

void sl_aead_key_free(struct sl_aead *a, struct sl_aead_key *key)
{
	if (!key)
		return;
	a->soft->ops->key_free(a->soft, key->soft);
	if (key->fast)
		a->fast->ops->key_free(a->fast, key->fast);
	OPENSSL_cleanse(key, sizeof(*key));
	free(key);
	if (!--a->nb_keys && a->is_closed)
		aead_free(a);
}

/* ---- work -------------------------------------------------------------------------------------------------------- */

static void soft_run(struct sl_aead *a, struct sl_aead_op *ops, uint32_t nb)
{
	void *keys[SL_AEAD_BATCH] = { NULL };
	uint32_t i;

	for (i = 0; i < nb; i++)
		keys[i] = ops[i].key->soft;
	a->soft->ops->run(a->soft, keys, ops, nb);
}

static void broke(struct sl_aead *a)
{
	a->is_broken = true;
	a->fallbacks++;
}

/* A device that calls a tag wrong may itself be what is wrong. It leaves in as it was, so software can judge. */
static void tags_judge(struct sl_aead *a, struct sl_aead_op *ops, uint32_t nb)
{
	uint32_t i;

	for (i = 0; i < nb; i++) {
		if (ops[i].status != -EBADMSG)
			continue;
		soft_run(a, &ops[i], 1);
		if (!ops[i].status && !a->is_broken)
			broke(a);
	}
}

/* Some of one kind in a row: all of keys that the engine has, or all of others. */
static void fast_run(struct sl_aead *a, struct sl_aead_op *ops, uint32_t nb)
{
	void *keys[SL_AEAD_BATCH] = { NULL };
	uint32_t i;

	for (i = 0; i < nb; i++)
		keys[i] = ops[i].key->fast;
	if (a->fast->ops->run(a->fast, keys, ops, nb)) {
		broke(a);
		soft_run(a, ops, nb);
	} else if (a->fast->kind == SL_CRYPTO_DEVICE) {
		tags_judge(a, ops, nb);
	}
}

void sl_aead_run(struct sl_aead *a, struct sl_aead_op *ops, uint32_t nb)
{
	uint32_t n;

	for (; nb; ops += n, nb -= n) {
		bool fast = a->fast && !a->is_broken && ops->key->fast;

		for (n = 1; n < nb && n < SL_AEAD_BATCH && !ops[n].key->fast == !ops->key->fast; n++)
			;
		(fast ? fast_run : soft_run)(a, ops, n);
	}
}

/* ---- trial ------------------------------------------------------------------------------------------------------- */

enum { TRIAL_LEN = 300 };

/* Whether the engine seals as OpenSSL does, and opens that again, for one algorithm; true too if it takes no key for it:
 * then *tried stays. */
static bool trial(struct sl_aead *a, enum sl_aead_alg alg, bool *tried)
{
	static const uint8_t bytes[SL_AEAD_KEY_MAX] = "any key does for such a trial..", iv[SL_AEAD_IV_LEN] = { 1 };
	static const uint8_t head[SL_AEAD_HEAD_LEN] = { 23, 3, 3, 1, 61 };
	uint8_t plain[TRIAL_LEN] = { 7 }, sealed[2][TRIAL_LEN + 1 + SL_AEAD_TAG_LEN], opened[TRIAL_LEN + 1];
	struct sl_aead_secret secret = { alg, true, bytes };
	struct sl_aead_key *seal = NULL, *open = NULL;
	struct sl_aead_op op = { .seq = 0x123456789, .head = head, .in = plain, .len = TRIAL_LEN, .tail = 23 };
	bool good;

	if (sl_aead_key_make(a, &secret, iv, &seal))
		return false;
	secret.seals = false;
	good = !sl_aead_key_make(a, &secret, iv, &open);
	if (good && seal->fast && open->fast) {
		*tried = true;
		op.key = seal;
		op.out = sealed[0];
		op.tag = sealed[0] + TRIAL_LEN + 1;
		soft_run(a, &op, 1);
		op.out = sealed[1];
		op.tag = sealed[1] + TRIAL_LEN + 1;
		good = !op.status && !a->fast->ops->run(a->fast, &seal->fast, &op, 1) && !op.status &&
		       !memcmp(sealed[0], sealed[1], sizeof(sealed[0]));
		op.key = open;
		op.in = sealed[1];
		op.out = opened;
		op.len = TRIAL_LEN + 1;
		op.tail = SL_AEAD_NO_TAIL;
		good = good && !a->fast->ops->run(a->fast, &open->fast, &op, 1) && !op.status &&
		       !memcmp(opened, plain, TRIAL_LEN) && opened[TRIAL_LEN] == 23;
	}
	sl_aead_key_free(a, seal);
	sl_aead_key_free(a, open);
	return good;
}

int sl_aead_revive(struct sl_aead *a)
{
	enum sl_aead_alg alg;
	bool good = true, tried = false;

	if (!a->fast)
		return -ENOENT;
	for (alg = 0; good && alg < SL_AEAD_ALG_NB; alg++)
		good = trial(a, alg, &tried);
	a->is_broken = !good || !tried;
	return a->is_broken ? -EIO : 0;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

int sl_aead_open(struct sl_aead_engine *engine, struct sl_aead **ret)
{
	struct sl_aead *a = calloc(1, sizeof(*a));
	int err = a ? sl_aead_soft_open(&a->soft) : -ENOMEM;

	if (err) {
		free(a);
		return err;
	}
	a->fast = engine;
	if (engine && sl_aead_revive(a))
		a->fallbacks++;
	*ret = a;
	return 0;
}

void sl_aead_close(struct sl_aead *a)
{
	if (!a)
		return;
	a->is_closed = true;
	if (!a->nb_keys)
		aead_free(a);
}
