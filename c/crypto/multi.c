/* SPDX-License-Identifier: Apache-2.0 */
/* libipsec-mb: AES-GCM and ChaCha20-Poly1305 for wide vectors (VAES, AVX-512). Its calls that take one record in parts
 * are used, since a record is two: the payload, and the byte of its content type. */
#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <stdlib.h>

#include "crypto/aead.h"

#define LIBRARY "libIPSec_MB.so.1"

struct multi {
	struct sl_aead_engine engine;
	void (*mgr_free)(IMB_MGR *mgr);
	IMB_MGR *mgr;
};

struct multi_key {
	struct gcm_key_data gcm;
	uint8_t chacha[32];
	enum sl_aead_alg alg;
};

static struct multi *multi_of(struct sl_aead_engine *e)
{
	return sl_container_of(e, struct multi, engine);
}

static int multi_key_make(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret)
{
	struct multi *m = multi_of(e);
	struct multi_key *k = aligned_alloc(64, (sizeof(*k) + 63) & ~(size_t)63);

	if (!k)
		return -ENOMEM;
	memset(k, 0, sizeof(*k));
	k->alg = secret->alg;
	switch (secret->alg) {
	case SL_AEAD_AES_128_GCM:
		IMB_AES128_GCM_PRE(m->mgr, secret->key, &k->gcm);
		break;
	case SL_AEAD_AES_256_GCM:
		IMB_AES256_GCM_PRE(m->mgr, secret->key, &k->gcm);
		break;
	default:
		memcpy(k->chacha, secret->key, sizeof(k->chacha));
	}
	*ret = k;
	return 0;
}

static void multi_key_free(struct sl_aead_engine *e, void *key)
{
	(void)e;
	OPENSSL_cleanse(key, sizeof(struct multi_key));
	free(key);
}

/* The two sizes of key have the same calls under two names. */
struct gcm_calls {
	aes_gcm_init_t init;
	aes_gcm_enc_dec_update_t seal, open;
	aes_gcm_enc_dec_finalize_t seal_end, open_end;
};

static struct gcm_calls gcm_calls_of(const IMB_MGR *m, enum sl_aead_alg alg)
{
	if (alg == SL_AEAD_AES_128_GCM)
		return (struct gcm_calls){ m->gcm128_init, m->gcm128_enc_update, m->gcm128_dec_update,
					   m->gcm128_enc_finalize, m->gcm128_dec_finalize };
	return (struct gcm_calls){ m->gcm256_init, m->gcm256_enc_update, m->gcm256_dec_update,
				   m->gcm256_enc_finalize, m->gcm256_dec_finalize };
}

static void gcm(const IMB_MGR *m, struct multi_key *k, const struct sl_aead_op *op, bool seals, uint8_t *tag)
{
	struct gcm_calls call = gcm_calls_of(m, k->alg);
	struct gcm_context_data ctx;
	uint8_t nonce[SL_AEAD_IV_LEN], tail = (uint8_t)op->tail;

	sl_aead_nonce(op, nonce);
	call.init(&k->gcm, &ctx, nonce, op->head, SL_AEAD_HEAD_LEN);
	(seals ? call.seal : call.open)(&k->gcm, &ctx, op->out, op->in, op->len);
	if (seals && op->tail >= 0)
		call.seal(&k->gcm, &ctx, op->out + op->len, &tail, 1);
	(seals ? call.seal_end : call.open_end)(&k->gcm, &ctx, tag, SL_AEAD_TAG_LEN);
}

static void chacha(const IMB_MGR *m, struct multi_key *k, const struct sl_aead_op *op, bool seals, uint8_t *tag)
{
	struct chacha20_poly1305_context_data ctx;
	uint8_t nonce[SL_AEAD_IV_LEN], tail = (uint8_t)op->tail;

	sl_aead_nonce(op, nonce);
	m->chacha20_poly1305_init(k->chacha, &ctx, nonce, op->head, SL_AEAD_HEAD_LEN);
	(seals ? m->chacha20_poly1305_enc_update
	       : m->chacha20_poly1305_dec_update)(k->chacha, &ctx, op->out, op->in, op->len);
	if (seals && op->tail >= 0)
		m->chacha20_poly1305_enc_update(k->chacha, &ctx, op->out + op->len, &tail, 1);
	m->chacha20_poly1305_finalize(&ctx, tag, SL_AEAD_TAG_LEN);
}

static int multi_run(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	const IMB_MGR *m = multi_of(e)->mgr;
	uint32_t i;

	for (i = 0; i < nb; i++) {
		struct sl_aead_op *op = &ops[i];
		struct multi_key *k = keys[i];
		bool seals = sl_aead_op_seals(op);
		uint8_t tag[SL_AEAD_TAG_LEN];

		(k->alg == SL_AEAD_CHACHA20_POLY1305 ? chacha : gcm)(m, k, op, seals, tag);
		op->status = 0;
		if (seals)
			memcpy(op->tag, tag, sizeof(tag));
		else if (CRYPTO_memcmp(op->tag, tag, sizeof(tag)))
			op->status = -EBADMSG;
		if (op->status)
			memset(op->out, 0, op->len);
	}
	return 0;
}

static void multi_close(struct sl_aead_engine *e)
{
	struct multi *m = multi_of(e);

	if (m->mgr)
		m->mgr_free(m->mgr);
	free(m);
}

void sl_aead_multi_load(void)
{
	(void)dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
}

static int mgr_make(struct multi *m)
{
	IMB_MGR *(*mgr_alloc)(uint64_t flags);
	void (*mgr_init)(IMB_MGR *mgr, IMB_ARCH *arch);
	IMB_ARCH arch = IMB_ARCH_NONE;

	/* Not by dlopen: that looks for a file if it is not loaded, even with RTLD_NOLOAD, and behind the walls this is death.
	 * C11 has no conversion of a pointer to data into one to a function, POSIX does (dlsym). */
	*(void **)&mgr_alloc = dlsym(RTLD_DEFAULT, "alloc_mb_mgr");
	*(void **)&mgr_init = dlsym(RTLD_DEFAULT, "init_mb_mgr_auto");
	*(void **)&m->mgr_free = dlsym(RTLD_DEFAULT, "free_mb_mgr");
	/* it asks the processor for AVX, and not whether the kernel lets anybody use that */
	if (!mgr_alloc || !mgr_init || !m->mgr_free || !__builtin_cpu_supports("avx"))
		return -EOPNOTSUPP;
	m->mgr = mgr_alloc(0);
	if (!m->mgr)
		return -ENOMEM;
	mgr_init(m->mgr, &arch);
	return arch < IMB_ARCH_SSE ? -EOPNOTSUPP : 0;   /* without AES instructions OpenSSL is the better choice */
}

int sl_aead_multi_open(struct sl_aead_engine **ret)
{
	static const struct sl_aead_engine_ops ops = { multi_key_make, multi_key_free, multi_run, multi_close };
	struct multi *m = calloc(1, sizeof(*m));
	int err;

	if (!m)
		return -ENOMEM;
	m->engine = (struct sl_aead_engine){ &ops, SL_CRYPTO_MULTI_BUFFER };
	err = mgr_make(m);
	if (err) {
		multi_close(&m->engine);
		return err;
	}
	*ret = &m->engine;
	return 0;
}
