/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing and opening TLS 1.3 records in batches, by whatever is fastest here: OpenSSL (always there), libipsec-mb, or
 * a device behind DPDK's cryptodev. A record is what RFC 8446 section 5.2 protects: its nonce is the sequence number
 * mixed into the direction's IV (section 5.3), its associated data the head of 5 bytes.
 *
 * A device can fail. Then the batch that it did not finish, and all later ones, are done in software, and no record is
 * lost: a device works on copies, and what it returns is taken only when all of it is there. A tag that a device calls
 * wrong is looked at again in software before anybody is told. See sl_aead_is_broken() and sl_aead_revive().
 *
 * One thread at a time. Nothing allocates after a key is made, and nothing logs. */
#ifndef SL_AEAD_H
#define SL_AEAD_H

#include "abi/control.h"
#include "base/base.h"

enum sl_aead_alg {
	SL_AEAD_AES_128_GCM = 0,
	SL_AEAD_AES_256_GCM = 1,
	SL_AEAD_CHACHA20_POLY1305 = 2,
	SL_AEAD_ALG_NB = 3,
};

enum {
	SL_AEAD_KEY_MAX = 32,
	SL_AEAD_IV_LEN = 12,
	SL_AEAD_HEAD_LEN = 5,
	SL_AEAD_TAG_LEN = 16,
	SL_AEAD_LEN_MAX = 16384 + 256,    /* bytes of one record's body */
	SL_AEAD_NO_TAIL = -1,
};

uint32_t sl_aead_key_len(enum sl_aead_alg alg);   /* bytes */

/* ---- one record -------------------------------------------------------------------------------------------------- */

struct sl_aead_key;

/* seal: in (and tail) -> out, tag. open: in, tag -> out. in and out are the same or do not overlap. */
struct sl_aead_op {
	struct sl_aead_key *key;  /* of the right direction */
	uint64_t seq;             /* never twice for one key that seals, except for the same bytes */
	const uint8_t *head;      /* SL_AEAD_HEAD_LEN bytes */
	const uint8_t *in;        /* seal: may be memory that somebody else writes to, open: must be private */
	uint8_t *out;             /* len bytes, one more with a tail; private */
	uint8_t *tag;             /* SL_AEAD_TAG_LEN bytes; private */
	uint32_t len;             /* of in, at most SL_AEAD_LEN_MAX with the tail */
	int tail;                 /* seal: a byte behind in (the content type), or SL_AEAD_NO_TAIL; open: that */
	int status;               /* result: 0; -EBADMSG: wrong tag, out must not be used; -EIO: OpenSSL failed */
};

/* ---- an implementation ------------------------------------------------------------------------------------------- */

struct sl_aead_secret {
	enum sl_aead_alg alg;
	bool seals;
	const uint8_t *key;       /* sl_aead_key_len() bytes; not kept */
};

/* What one way of doing it is: a file each. nonce is of SL_AEAD_IV_LEN bytes. */
struct sl_aead_engine {
	const struct sl_aead_engine_ops *ops;
	enum sl_crypto_kind kind;
};

struct sl_aead_engine_ops {
	/* Prepares a key. 0; -EOPNOTSUPP: not this algorithm; -ENOMEM; -ENOSPC: no more keys; -ENODEV: it is gone. */
	int (*key_make)(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret);
	void (*key_free)(struct sl_aead_engine *e, void *key);
	/* Does all of them, all of keys that it made (keys[i]), and sets each status. 0; -EIO: it is broken, and has
	 * changed neither in nor out nor tag of any. */
	int (*run)(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb);
	void (*close)(struct sl_aead_engine *e);
};

enum { SL_AEAD_BATCH = 32 };   /* most that run() is given */

/* OpenSSL. 0, -ENOMEM. */
int sl_aead_soft_open(struct sl_aead_engine **ret);

/* libipsec-mb: load() finds and keeps it, while files may still be opened; it is too large to be part of every program and
 * of every guest. -EOPNOTSUPP: it is not loaded, or the processor has not what it needs. */
void sl_aead_multi_load(void);
int sl_aead_multi_open(struct sl_aead_engine **ret);

/* A device of DPDK: "0000:01:00.1", one of software such as "crypto_openssl", or NULL: PCI functions that come and go
 * later. load() starts EAL, which can be done once in a process, while files may still be opened; open() as often as
 * the one before was closed, behind the walls too. -EOPNOTSUPP: built without DPDK; -ENOTSUP: the device knows none of
 * the algorithms; -ENODEV: it is not there; others. why (SL_AEAD_WHY_LEN bytes) says what failed. */
enum {
	SL_AEAD_WHY_LEN = 200,
	SL_AEAD_HUGE_PAGES = 16,      /* of 2 MiB, which must be free for devices that come later */
};
struct sl_aead_device_conf {
	const char *device;
	const char *runtime_dir;      /* EAL makes a folder in it */
	const char *const *eal;       /* further arguments for EAL, ends with NULL; or NULL */
};
int sl_aead_device_load(const struct sl_aead_device_conf *conf, char *why);
int sl_aead_device_open(struct sl_aead_engine **ret, char *why);

/* Each device that comes has another number; 0: there is none. What was made of another one is broken for good. */
uint32_t sl_aead_device_number(void);

/* After load(NULL): a PCI function, bound to a driver by which DPDK can use it, comes; it goes, or has gone. For
 * another thread than the one that seals, with the right to open files. One at a time. -ENODEV: not for any driver of
 * DPDK's, -ENOTSUP: none of the algorithms, -EBUSY: there is one. */
int sl_aead_device_plug(const char *address, char *why);
void sl_aead_device_unplug(const char *address);

/* ---- the front: an implementation, and software behind it -------------------------------------------------------- */

struct sl_aead;

/* Takes engine over; NULL: software alone. It is tried first: one that does not give OpenSSL's bytes is not used (see
 * sl_aead_is_broken). -ENOMEM: engine stays the caller's. */
int sl_aead_open(struct sl_aead_engine *engine, struct sl_aead **ret);
void sl_aead_close(struct sl_aead *a);   /* its keys go on working; the last one to be freed takes it away */

/* What does the work now; SOFTWARE after a failure. */
enum sl_crypto_kind sl_aead_kind(const struct sl_aead *a);

/* An engine failed: once it has, its records are done in software. fallbacks counts how often that has happened. */
bool sl_aead_is_broken(const struct sl_aead *a);
uint32_t sl_aead_fallbacks(const struct sl_aead *a);
/* Tries the engine again; 0: it gives the right bytes and is used from now on, also for keys that it had. -EIO: it does
 * not; -ENOENT: there is none. */
int sl_aead_revive(struct sl_aead *a);

/* The IV is XORed with each record's number. 0, -ENOMEM. free wipes; NULL is fine. */
int sl_aead_key_make(struct sl_aead *a, const struct sl_aead_secret *secret, const uint8_t iv[SL_AEAD_IV_LEN],
		     struct sl_aead_key **ret);
void sl_aead_key_free(struct sl_aead *a, struct sl_aead_key *key);

/* Seals or opens, by each key's direction, any number of records. Each has its status afterwards. */
void sl_aead_run(struct sl_aead *a, struct sl_aead_op *ops, uint32_t nb);

/* For engines: RFC 8446 section 5.3. */
void sl_aead_nonce(const struct sl_aead_op *op, uint8_t nonce[SL_AEAD_IV_LEN]);
bool sl_aead_op_seals(const struct sl_aead_op *op);

#endif
