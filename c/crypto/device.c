/* SPDX-License-Identifier: Apache-2.0 */
/* A device behind DPDK's cryptodev: one queue pair. A batch is copied into the device's memory, handed over, and taken
 * back when all of it is done, so nothing of the caller's changes if it never is. Then the device is stopped and gets an
 * empty queue: it must never touch what we free, which are its keys too. */
#include <openssl/crypto.h>
#include <rte_cryptodev.h>
#include <rte_errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "crypto/aead.h"
#include "crypto/plug.h"
#include "dpdk/eal.h"

enum {
	NB_KEYS = 4096,
	NB_OPS = 4 * SL_AEAD_BATCH,
	NB_DESC = 128,
	DATA_LEN = SL_AEAD_LEN_MAX + SL_AEAD_TAG_LEN + 1,
	STUCK_NS = 50000000,                /* without any progress in as many looks: the device is broken */
	STUCK_LOOKS = 1000,                 /* one look may take as long, if something else runs meanwhile */
	/* behind each operation */
	AT_IV = sizeof(struct rte_crypto_op) + sizeof(struct rte_crypto_sym_op),
	AT_HEAD = AT_IV + 16,               /* drivers may read whole blocks of it */
	PRIVATE_LEN = 16 + 32,
};

struct device {
	struct sl_aead_engine engine;
	uint32_t number;            /* another one has come, if it is not this any more: nothing of id is ours then */
	uint8_t id;
	bool has[SL_AEAD_ALG_NB];
	bool is_stopped;
	struct rte_mempool *sessions;
};

/* What a batch is made of, for whatever device: made while files may be opened, as DPDK looks up where they lie. */
static struct rte_mempool *records, *bodies;

static struct device *device_of(struct sl_aead_engine *e)
{
	return sl_container_of(e, struct device, engine);
}

static enum rte_crypto_aead_algorithm algorithm_of(enum sl_aead_alg alg)
{
	return alg == SL_AEAD_CHACHA20_POLY1305 ? RTE_CRYPTO_AEAD_CHACHA20_POLY1305 : RTE_CRYPTO_AEAD_AES_GCM;
}

/* ---- queue -------------------------------------------------------------------------------------------------------- */

static int queue_start(struct device *d)
{
	struct rte_cryptodev_qp_conf qp = { .nb_descriptors = NB_DESC, .mp_session = d->sessions };
	int err = rte_cryptodev_queue_pair_setup(d->id, 0, &qp, rte_cryptodev_socket_id(d->id));

	err = err ? err : rte_cryptodev_start(d->id);
	d->is_stopped = err;
	return err;
}

static void queue_stop(struct device *d)
{
	rte_cryptodev_stop(d->id);
	d->is_stopped = true;
}

/* Whether it works, as far as we know. One that was pulled out has not been stopped. */
static bool is_started(struct device *d)
{
	if (!d->is_stopped)
		return true;
	if (!rte_cryptodev_is_valid_dev(d->id))
		return false;
	queue_stop(d);
	return !queue_start(d);
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

static int device_key_make(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret)
{
	struct device *d = device_of(e);
	struct rte_crypto_sym_xform x = {
		.type = RTE_CRYPTO_SYM_XFORM_AEAD,
		.aead = {
			.op = secret->seals ? RTE_CRYPTO_AEAD_OP_ENCRYPT : RTE_CRYPTO_AEAD_OP_DECRYPT,
			.algo = algorithm_of(secret->alg),
			.key = { secret->key, (uint16_t)sl_aead_key_len(secret->alg) },
			.iv = { AT_IV, SL_AEAD_IV_LEN },
			.digest_length = SL_AEAD_TAG_LEN, .aad_length = SL_AEAD_HEAD_LEN,
		},
	};
	int err = 0;

	if (!d->has[secret->alg])
		return -EOPNOTSUPP;
	if (!sl_plug_hold(d->number))
		return -ENODEV;
	if (is_started(d))
		*ret = rte_cryptodev_sym_session_create(d->id, &x, d->sessions);
	else
		err = -ENODEV;
	sl_plug_drop();
	return err ? err : *ret ? 0 : -ENOSPC;
}

static void device_key_free(struct sl_aead_engine *e, void *key)
{
	struct device *d = device_of(e);

	if (sl_plug_hold(d->number)) {
		rte_cryptodev_sym_session_free(d->id, key);
		sl_plug_drop();
		return;
	}
	OPENSSL_cleanse(key, d->sessions->elt_size);
	rte_mempool_put(d->sessions, key);
}

/* ---- work -------------------------------------------------------------------------------------------------------- */

/* The record is wiped: it may be secret. */
static void op_free(struct rte_crypto_op *c)
{
	struct rte_mbuf *m = c->sym->m_src;

	OPENSSL_cleanse(rte_pktmbuf_mtod(m, void *), m->data_len);
	rte_pktmbuf_free(m);
	rte_crypto_op_free(c);
}

static void fill(struct rte_crypto_op *c, struct rte_mbuf *m, void *session, const struct sl_aead_op *op)
{
	uint32_t tail_len = op->tail >= 0, len = op->len + tail_len;
	uint8_t *data = (uint8_t *)rte_pktmbuf_append(m, (uint16_t)(len + SL_AEAD_TAG_LEN));   /* fits */
	uint8_t *head = rte_crypto_op_ctod_offset(c, uint8_t *, AT_HEAD);

	memcpy(data, op->in, op->len);
	if (tail_len)
		data[op->len] = (uint8_t)op->tail;
	if (!sl_aead_op_seals(op))
		memcpy(data + len, op->tag, SL_AEAD_TAG_LEN);
	sl_aead_nonce(op, rte_crypto_op_ctod_offset(c, uint8_t *, AT_IV));
	memcpy(head, op->head, SL_AEAD_HEAD_LEN);
	rte_crypto_op_attach_sym_session(c, session);
	c->sym->m_src = m;
	c->sym->aead.data.offset = 0;
	c->sym->aead.data.length = len;
	c->sym->aead.aad.data = head;
	c->sym->aead.aad.phys_addr = rte_crypto_op_ctophys_offset(c, AT_HEAD);
	c->sym->aead.digest.data = data + len;
	c->sym->aead.digest.phys_addr = rte_pktmbuf_iova_offset(m, len);
}

/* Hands all over and takes all back, in whatever order. False: the device did not go on, and is stopped. */
static bool exchange(struct device *d, struct rte_crypto_op **ops, uint32_t nb)
{
	struct rte_crypto_op *done[SL_AEAD_BATCH];
	uint64_t progress_ns = sl_now_ns();
	uint32_t sent = 0, taken = 0, looks = 0, in, out;

	while (taken < nb) {
		in = sent < nb ? rte_cryptodev_enqueue_burst(d->id, 0, ops + sent, (uint16_t)(nb - sent)) : 0;
		out = rte_cryptodev_dequeue_burst(d->id, 0, done, SL_AEAD_BATCH);
		sent += in;
		taken += out;
		if (in || out) {
			progress_ns = sl_now_ns();
			looks = 0;
		} else if (++looks > STUCK_LOOKS && sl_now_ns() - progress_ns > STUCK_NS) {
			queue_stop(d);
			return false;
		}
	}
	return true;
}

static int status_of(const struct rte_crypto_op *c)
{
	if (c->status == RTE_CRYPTO_OP_STATUS_SUCCESS)
		return 0;
	return c->status == RTE_CRYPTO_OP_STATUS_AUTH_FAILED ? -EBADMSG : -EIO;
}

static void take(const struct rte_crypto_op *c, struct sl_aead_op *op)
{
	uint32_t len = op->len + (op->tail >= 0);
	const uint8_t *data = rte_pktmbuf_mtod(c->sym->m_src, const uint8_t *);

	op->status = status_of(c);
	if (op->status)
		return;
	memcpy(op->out, data, len);
	if (sl_aead_op_seals(op))
		memcpy(op->tag, data + len, SL_AEAD_TAG_LEN);
}

static int run(struct device *d, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	struct rte_crypto_op *cops[SL_AEAD_BATCH];
	struct rte_mbuf *mbufs[SL_AEAD_BATCH];
	int err = 0;
	uint32_t i;

	if (!is_started(d))
		return -EIO;
	if (rte_pktmbuf_alloc_bulk(bodies, mbufs, nb))
		return -EIO;
	if (rte_crypto_op_bulk_alloc(records, RTE_CRYPTO_OP_TYPE_SYMMETRIC, cops, (uint16_t)nb) != nb) {
		rte_pktmbuf_free_bulk(mbufs, nb);
		return -EIO;
	}
	for (i = 0; i < nb; i++)
		fill(cops[i], mbufs[i], keys[i], &ops[i]);
	if (!exchange(d, cops, nb))
		err = -EIO;
	for (i = 0; !err && i < nb; i++)
		err = status_of(cops[i]) == -EIO ? -EIO : 0;
	for (i = 0; !err && i < nb; i++)
		take(cops[i], &ops[i]);
	for (i = 0; i < nb; i++)
		op_free(cops[i]);
	return err;
}

static int device_run(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	struct device *d = device_of(e);
	int err;

	if (!sl_plug_hold(d->number))
		return -EIO;
	err = run(d, keys, ops, nb);
	sl_plug_drop();
	return err;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void device_close(struct sl_aead_engine *e)
{
	struct device *d = device_of(e);

	if (sl_plug_hold(d->number)) {
		rte_cryptodev_stop(d->id);
		rte_cryptodev_close(d->id);
		sl_plug_drop();
	}
	rte_mempool_free(d->sessions);
	free(d);
}

/* Which of our algorithms the device has, in the form that TLS needs. */
static bool algorithms_find(struct device *d)
{
	bool any = false;
	enum sl_aead_alg alg;

	for (alg = 0; alg < SL_AEAD_ALG_NB; alg++) {
		struct rte_cryptodev_sym_capability_idx idx = {
			.type = RTE_CRYPTO_SYM_XFORM_AEAD, .algo.aead = algorithm_of(alg),
		};
		const struct rte_cryptodev_symmetric_capability *cap = rte_cryptodev_sym_capability_get(d->id, &idx);

		d->has[alg] = cap && !rte_cryptodev_sym_capability_check_aead(cap, (uint16_t)sl_aead_key_len(alg),
									      SL_AEAD_TAG_LEN, SL_AEAD_HEAD_LEN,
									      SL_AEAD_IV_LEN);
		any |= d->has[alg];
	}
	return any;
}

int sl_device_find(uint8_t *ret)
{
	struct device d = { 0 };
	int err = -ENODEV;

	for (d.id = 0; d.id < RTE_CRYPTO_MAX_DEVS; d.id++) {
		if (!rte_cryptodev_is_valid_dev(d.id))
			continue;
		err = -ENOTSUP;
		*ret = d.id;
		if (algorithms_find(&d))
			return 0;
	}
	return err;
}

/* A pool for each device: that of one that has gone lives on with its keys. */
static int sessions_make(struct device *d)
{
	char name[RTE_MEMPOOL_NAMESIZE];

	snprintf(name, sizeof(name), "keys-%u", d->number);
	d->sessions = rte_cryptodev_sym_session_pool_create(
		name, NB_KEYS, rte_cryptodev_sym_get_private_session_size(d->id), 0, 0, SOCKET_ID_ANY);
	return d->sessions ? 0 : -ENOMEM;
}

static int device_start(struct device *d, const char **step)
{
	struct rte_cryptodev_config conf = { .nb_queue_pairs = 1, .socket_id = SOCKET_ID_ANY };
	int err;

	*step = "find one with AES-GCM or ChaCha20-Poly1305";
	err = sl_device_find(&d->id);
	if (err)
		return err;
	algorithms_find(d);
	*step = "memory";
	err = sessions_make(d);
	if (err)
		return err;
	*step = "start";
	conf.socket_id = rte_cryptodev_socket_id(d->id);
	conf.ff_disable = RTE_CRYPTODEV_FF_ASYMMETRIC_CRYPTO | RTE_CRYPTODEV_FF_SECURITY;
	err = rte_cryptodev_configure(d->id, &conf);
	return err ? err : queue_start(d);
}

_Static_assert(2 * SL_AEAD_HUGE_PAGES == SL_EAL_LATER_MB, "what the guest reserves is what EAL takes");

int sl_aead_device_load(const struct sl_aead_device_conf *conf, char *why)
{
	struct sl_eal_conf eal = { .device = conf->device, .args = conf->eal, .runtime_dir = conf->runtime_dir };
	int err = sl_eal_start(&eal, why);

	if (err)
		return err;
	records = rte_crypto_op_pool_create("records", RTE_CRYPTO_OP_TYPE_SYMMETRIC, NB_OPS, 0, PRIVATE_LEN,
					    SOCKET_ID_ANY);
	bodies = rte_pktmbuf_pool_create("bodies", NB_OPS, 0, 0, RTE_ALIGN(DATA_LEN + RTE_PKTMBUF_HEADROOM, 64),
					 SOCKET_ID_ANY);
	if (!records || !bodies) {
		snprintf(why, SL_AEAD_WHY_LEN, "step=memory error=\"%s\"", rte_strerror(rte_errno));
		return -ENOMEM;
	}
	if (conf->device)
		sl_plug_fixed();
	return 0;
}

int sl_aead_device_open(struct sl_aead_engine **ret, char *why)
{
	static const struct sl_aead_engine_ops ops = { device_key_make, device_key_free, device_run, device_close };
	struct device *d = calloc(1, sizeof(*d));
	const char *step;
	int err;

	if (!d)
		return -ENOMEM;
	d->engine = (struct sl_aead_engine){ &ops, SL_CRYPTO_DEVICE };
	d->number = sl_aead_device_number();
	step = "find";
	err = -ENODEV;
	if (sl_plug_hold(d->number)) {
		err = device_start(d, &step);
		sl_plug_drop();
	}
	if (err) {
		snprintf(why, SL_AEAD_WHY_LEN, "step=\"%s\" error=\"%s\"", step, rte_strerror(-err));
		rte_mempool_free(d->sessions);
		free(d);
		return err;
	}
	*ret = &d->engine;
	return 0;
}
