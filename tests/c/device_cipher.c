/* SPDX-License-Identifier: Apache-2.0 */
/* AES-128-CBC on a device of DPDK, compared with OpenSSL: for devices without AEAD, which c/crypto refuses, such as
 * virtio-crypto. It shows that the device is there, works, and is reached through all that lies between.
 *
 * usage: device_cipher DEVICE [EAL ARGUMENT]...    such as crypto_openssl or 0000:00:05.0; prints what it compared */
#include <openssl/evp.h>
#include <rte_cryptodev.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "dpdk/eal.h"

enum {
	ROUNDS = 500, BLOCK = 16, LEN_MAX = 4096, NB_OBJECTS = 63,
	AT_IV = sizeof(struct rte_crypto_op) + sizeof(struct rte_crypto_sym_op),
	STUCK_NS = 1000000000,
};

struct rig {
	uint8_t id;
	struct rte_mempool *sessions, *ops, *mbufs;
	uint8_t key[BLOCK], iv[BLOCK], plain[LEN_MAX], sealed[LEN_MAX];
};

static int fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	return 1;
}

static void openssl_seal(struct rig *r, int len)
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int n;

	EVP_EncryptInit_ex(ctx, EVP_aes_128_cbc(), NULL, r->key, r->iv);
	EVP_CIPHER_CTX_set_padding(ctx, 0);
	EVP_EncryptUpdate(ctx, r->sealed, &n, r->plain, len);
	EVP_CIPHER_CTX_free(ctx);
}

static int device_start(struct rig *r)
{
	struct rte_cryptodev_config conf = { .nb_queue_pairs = 1, .ff_disable = RTE_CRYPTODEV_FF_ASYMMETRIC_CRYPTO };
	struct rte_cryptodev_qp_conf qp = { .nb_descriptors = 128 };

	while (!rte_cryptodev_is_valid_dev(r->id))
		if (++r->id == RTE_CRYPTO_MAX_DEVS)
			return fail("no crypto device came of it");
	conf.socket_id = rte_cryptodev_socket_id(r->id);
	r->sessions = rte_cryptodev_sym_session_pool_create("keys", NB_OBJECTS,
							    rte_cryptodev_sym_get_private_session_size(r->id), 0, 0,
							    SOCKET_ID_ANY);
	r->ops = rte_crypto_op_pool_create("ops", RTE_CRYPTO_OP_TYPE_SYMMETRIC, NB_OBJECTS, 0, BLOCK, SOCKET_ID_ANY);
	r->mbufs = rte_pktmbuf_pool_create("bodies", NB_OBJECTS, 0, 0, LEN_MAX + RTE_PKTMBUF_HEADROOM, SOCKET_ID_ANY);
	qp.mp_session = r->sessions;
	if (!r->sessions || !r->ops || !r->mbufs || rte_cryptodev_configure(r->id, &conf) ||
	    rte_cryptodev_queue_pair_setup(r->id, 0, &qp, conf.socket_id) || rte_cryptodev_start(r->id))
		return fail("the device does not start");
	return 0;
}

/* The device's answer in m: 0 if it is there in time. */
static int device_run(struct rig *r, void *session, struct rte_mbuf *m, uint32_t len)
{
	struct rte_crypto_op *op = rte_crypto_op_alloc(r->ops, RTE_CRYPTO_OP_TYPE_SYMMETRIC), *done = NULL;
	uint64_t start = sl_now_ns();
	int err;

	memcpy(rte_crypto_op_ctod_offset(op, uint8_t *, AT_IV), r->iv, BLOCK);
	rte_crypto_op_attach_sym_session(op, session);
	op->sym->m_src = m;
	op->sym->cipher.data.offset = 0;
	op->sym->cipher.data.length = len;
	if (rte_cryptodev_enqueue_burst(r->id, 0, &op, 1) != 1)
		return fail("the device takes nothing");
	while (!rte_cryptodev_dequeue_burst(r->id, 0, &done, 1))
		if (sl_now_ns() - start > STUCK_NS)
			return fail("the device does not answer");
	err = done->status != RTE_CRYPTO_OP_STATUS_SUCCESS;
	rte_crypto_op_free(done);
	return err ? fail("the device reports an error") : 0;
}

/* Sealed or opened by the device, from and to what OpenSSL has. */
static int compare(struct rig *r, bool seals, uint32_t len)
{
	struct rte_crypto_sym_xform x = {
		.type = RTE_CRYPTO_SYM_XFORM_CIPHER,
		.cipher = {
			.op = seals ? RTE_CRYPTO_CIPHER_OP_ENCRYPT : RTE_CRYPTO_CIPHER_OP_DECRYPT,
			.algo = RTE_CRYPTO_CIPHER_AES_CBC, .key = { r->key, BLOCK }, .iv = { AT_IV, BLOCK },
		},
	};
	void *session = rte_cryptodev_sym_session_create(r->id, &x, r->sessions);
	struct rte_mbuf *m = rte_pktmbuf_alloc(r->mbufs);
	uint8_t *data = m ? (uint8_t *)rte_pktmbuf_append(m, (uint16_t)len) : NULL;
	int err = !session || !data ? fail("the device does not take the key") : 0;

	if (!err) {
		memcpy(data, seals ? r->plain : r->sealed, len);
		err = device_run(r, session, m, len);
	}
	if (!err && memcmp(data, seals ? r->sealed : r->plain, len))
		err = fail("the device gives other bytes than OpenSSL");
	rte_pktmbuf_free(m);
	if (session)
		rte_cryptodev_sym_session_free(r->id, session);
	return err;
}

int main(int argc, char **argv)
{
	char folder[] = "/tmp/slt-XXXXXX", why[SL_EAL_WHY_LEN];
	struct sl_eal_conf eal = { .device = argv[1], .args = (const char *const *)argv + 2, .runtime_dir = folder };
	static struct rig r;
	uint64_t bytes = 0;
	int i, at, len, err;

	if (argc < 2 || !mkdtemp(folder))
		return 2;
	if (sl_eal_start(&eal, why))
		return fail(why);
	err = device_start(&r);
	srand(1);
	for (i = 0; !err && i < ROUNDS; i++) {
		len = BLOCK * (1 + rand() % (LEN_MAX / BLOCK));
		for (at = 0; at < len; at++)
			r.plain[at] = (uint8_t)rand();
		for (at = 0; at < BLOCK; at++) {
			r.key[at] = (uint8_t)rand();
			r.iv[at] = (uint8_t)rand();
		}
		openssl_seal(&r, len);
		err = compare(&r, true, (uint32_t)len) || compare(&r, false, (uint32_t)len);
		bytes += (uint64_t)len;
	}
	if (!err)
		printf("%d bodies, %llu bytes, sealed and opened by %s as by OpenSSL\n", i, (unsigned long long)bytes,
		       argv[1]);
	rte_eal_cleanup();
	snprintf(why, sizeof(why), "rm -r %s", folder);
	return system(why) ? 1 : err;
}
