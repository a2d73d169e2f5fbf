/* SPDX-License-Identifier: Apache-2.0 */
#include "aead_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <openssl/evp.h>

enum { LEN_MAX = 16384, ROOM = LEN_MAX + 1 + SL_AEAD_TAG_LEN, BATCH_MAX = 40 };

static uint64_t dice = 0x9e3779b97f4a7c15;

static uint32_t roll(uint32_t below)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return (uint32_t)(dice >> 32) % below;
}

static void fill(uint8_t *to, uint32_t len)
{
	uint32_t i;

	for (i = 0; i < len; i++)
		to[i] = (uint8_t)roll(256);
}

/* A record and what OpenSSL, called without any of our code, makes of it. */
struct record {
	enum sl_aead_alg alg;
	uint8_t key[SL_AEAD_KEY_MAX], iv[SL_AEAD_IV_LEN], head[SL_AEAD_HEAD_LEN];
	uint64_t seq;
	uint32_t len;
	int tail;
	uint8_t plain[ROOM], sealed[ROOM];   /* the tail and the tag follow */
	struct sl_aead_key *seal, *open;
};

static void openssl_seal(struct record *r)
{
	static const char *const names[] = { "AES-128-GCM", "AES-256-GCM", "ChaCha20-Poly1305" };
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, names[r->alg], NULL);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint32_t len = r->len + (r->tail >= 0), i;
	uint8_t nonce[12];
	int n;

	memcpy(nonce, r->iv, 12);
	for (i = 0; i < 8; i++)
		nonce[4 + i] ^= (uint8_t)(r->seq >> (56 - 8 * i));
	assert_int_equal(EVP_EncryptInit_ex2(ctx, cipher, r->key, nonce, NULL), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, NULL, &n, r->head, 5), 1);
	assert_int_equal(EVP_EncryptUpdate(ctx, r->sealed, &n, r->plain, (int)len), 1);
	assert_int_equal(EVP_EncryptFinal_ex(ctx, r->sealed + len, &n), 1);
	assert_int_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, r->sealed + len), 1);
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(cipher);
}

static void record_make(struct sl_aead *a, struct record *r)
{
	static const uint32_t lens[] = { 0, 1, 15, 16, 17, 255, 256, 1400, 4096, LEN_MAX - 1, LEN_MAX };
	struct sl_aead_secret secret;

	r->alg = roll(SL_AEAD_ALG_NB);
	r->len = roll(2) ? lens[roll(sl_nb(lens))] : roll(2048);
	r->tail = roll(4) || !r->len ? (int)roll(256) : SL_AEAD_NO_TAIL;
	r->seq = roll(3) ? roll(1000) : (uint64_t)roll(UINT32_MAX) << 32 | roll(UINT32_MAX);
	fill(r->key, sizeof(r->key));
	fill(r->iv, sizeof(r->iv));
	fill(r->head, sizeof(r->head));
	fill(r->plain, r->len);
	if (r->tail >= 0)
		r->plain[r->len] = (uint8_t)r->tail;
	openssl_seal(r);
	secret = (struct sl_aead_secret){ r->alg, true, r->key };
	assert_int_equal(sl_aead_key_make(a, &secret, r->iv, &r->seal), 0);
	secret.seals = false;
	assert_int_equal(sl_aead_key_make(a, &secret, r->iv, &r->open), 0);
}

static void record_free(struct sl_aead *a, struct record *r)
{
	sl_aead_key_free(a, r->seal);
	sl_aead_key_free(a, r->open);
}

/* Each record sealed, opened, opened in place, and opened with one bit of tag, body, head or number changed. */
enum way { SEAL, OPEN, OPEN_IN_PLACE, OPEN_TAG, OPEN_BODY, OPEN_HEAD, OPEN_SEQ, WAYS };

struct job {
	struct record record;
	enum way way;
	uint8_t head[SL_AEAD_HEAD_LEN], in[ROOM], out[ROOM], tag[SL_AEAD_TAG_LEN];
};

static void job_make(struct sl_aead *a, struct job *j, struct sl_aead_op *op)
{
	struct record *r = &j->record;
	uint32_t len;

	record_make(a, r);
	len = r->len + (r->tail >= 0);
	j->way = roll(WAYS);
	if (j->way == OPEN_BODY && !len)
		j->way = OPEN_TAG;
	memcpy(j->head, r->head, sizeof(j->head));
	memcpy(j->in, j->way == SEAL ? r->plain : r->sealed, len);
	memcpy(j->tag, r->sealed + len, sizeof(j->tag));
	*op = (struct sl_aead_op){ .key = r->open, .seq = r->seq, .head = j->head, .in = j->in, .out = j->out,
				   .tag = j->tag, .len = len, .tail = SL_AEAD_NO_TAIL, .status = 99 };
	switch (j->way) {
	case SEAL:
		op->key = r->seal;
		op->len = r->len;
		op->tail = r->tail;
		memset(j->tag, 0, sizeof(j->tag));
		break;
	case OPEN_IN_PLACE: op->out = j->in; break;
	case OPEN_TAG: j->tag[roll(16)] ^= (uint8_t)(1 << roll(8)); break;
	case OPEN_BODY: j->in[roll(len)] ^= (uint8_t)(1 << roll(8)); break;
	case OPEN_HEAD: j->head[roll(5)] ^= (uint8_t)(1 << roll(8)); break;
	case OPEN_SEQ: op->seq ^= 1ull << roll(64); break;
	default: break;
	}
}

static void job_check(const struct job *j, const struct sl_aead_op *op)
{
	const struct record *r = &j->record;
	uint32_t len = r->len + (r->tail >= 0);

	if (j->way >= OPEN_TAG) {
		assert_int_equal(op->status, -EBADMSG);
		return;
	}
	assert_int_equal(op->status, 0);
	assert_memory_equal(op->out, j->way == SEAL ? r->sealed : r->plain, len);
	if (j->way == SEAL)
		assert_memory_equal(j->tag, r->sealed + len, sizeof(j->tag));
}

void aead_check(struct sl_aead *a, uint32_t rounds)
{
	struct job *jobs = calloc(BATCH_MAX, sizeof(*jobs));
	struct sl_aead_op ops[BATCH_MAX];
	uint32_t done, n, i;

	for (done = 0; done < rounds; done += n) {
		n = 1 + roll(BATCH_MAX);
		for (i = 0; i < n; i++)
			job_make(a, &jobs[i], &ops[i]);
		sl_aead_run(a, ops, n);
		for (i = 0; i < n; i++) {
			job_check(&jobs[i], &ops[i]);
			record_free(a, &jobs[i].record);
		}
	}
	free(jobs);
}
