/* SPDX-License-Identifier: Apache-2.0 */
/* The record layer of TLS 1.3 after the handshake (RFC 8446 section 5), on the AEAD of crypto/aead.h. OpenSSL's own can not
 * be taken out of one process and put into another one; this state is a secret and a number for each direction.
 *
 * Nonces: a record's nonce is its sequence number (section 5.3), so two records with one number under one secret must be
 * the same record. Who calls sl_record_seal sees to it; layers/tls/move.h says how. */
#ifndef SL_TLS_RECORD_H
#define SL_TLS_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include <openssl/evp.h>

#include "crypto/aead.h"

enum {
	SL_RECORD_HEAD = SL_AEAD_HEAD_LEN,
	SL_RECORD_TAG = SL_AEAD_TAG_LEN,
	SL_RECORD_EXTRA = SL_RECORD_HEAD + 1 + SL_RECORD_TAG,   /* what sl_record_seal adds: head, content type, tag */
	SL_RECORD_CONTENT = 16384,                              /* section 5.1 */
	SL_RECORD_MAX = SL_RECORD_HEAD + SL_RECORD_CONTENT + 256,   /* section 5.2 */
	SL_SECRET_MAX = 48,
};

enum sl_record_type { SL_RECORD_CCS = 20, SL_RECORD_ALERT = 21, SL_RECORD_HANDSHAKE = 22, SL_RECORD_DATA = 23 };

/* Alerts, section 6 */
enum {
	SL_ALERT_CLOSE_NOTIFY = 0, SL_ALERT_UNEXPECTED_MESSAGE = 10, SL_ALERT_BAD_RECORD_MAC = 20, SL_ALERT_RECORD_OVERFLOW = 22,
	SL_ALERT_INTERNAL_ERROR = 80, SL_ALERT_USER_CANCELED = 90,
};

struct sl_suite {
	uint16_t id;             /* section B.4 */
	uint8_t alg;             /* enum sl_aead_alg */
	uint8_t secret_len;      /* of its hash */
	const char *digest;
};

/* Fetched once: a fetch for each connection costs more than the connection's keys. One thread. */
struct sl_crypto {
	struct sl_aead *aead;          /* what seals and opens records */
	EVP_CIPHER *state_cipher;      /* AES-256-GCM, of move.h: one message under each key */
	EVP_MAC *mac;
	EVP_MAC_CTX *hmac;
};

/* Takes aead over, also on an error. Returns 0 or -ENOMEM; sl_crypto_free is due in any case. */
int sl_crypto_init(struct sl_crypto *k, struct sl_aead *aead);
void sl_crypto_free(struct sl_crypto *k);   /* no half may be set any more */
const struct sl_suite *sl_suite_find(uint16_t id);   /* NULL: not one of ours */

/* HKDF-Expand-Label of section 7.1. A context has 16 bytes, or is NULL; len is at most that of the digest. False: no
 * memory. */
bool sl_expand_label(struct sl_crypto *k, const char *digest, const uint8_t *secret, uint32_t secret_len, const char *label,
		     const uint8_t *context, uint8_t *out, uint32_t len);

/* One direction of a connection */
struct sl_half {
	const struct sl_suite *suite;
	struct sl_aead *aead;
	struct sl_aead_key *key;   /* NULL: not set */
	uint64_t seq;            /* of the next record, in this generation */
	uint16_t gen;            /* key updates so far */
	bool seals;
	uint8_t secret[SL_SECRET_MAX];
};

/* Takes the traffic secret of a generation over. Returns 0 or -ENOMEM. Again: the former one is wiped. */
int sl_half_set(struct sl_half *h, struct sl_crypto *k, const struct sl_suite *suite, const uint8_t *secret, uint16_t gen,
		bool seals);
/* The next generation (section 7.2); seq starts at 0. Returns 0 or -ENOMEM. */
int sl_half_update(struct sl_half *h, struct sl_crypto *k);
void sl_half_wipe(struct sl_half *h);

/* Writes one record of len + SL_RECORD_EXTRA bytes. p may be shared memory, each byte is read once; out must be private:
 * the tag is computed over what is read back from there. Returns false on an error of the library. */
bool sl_record_seal(struct sl_half *h, uint8_t type, const uint8_t *p, uint32_t len, uint8_t *out);

/* Length of the whole record whose head this is, or the negative alert. */
int sl_record_len(const uint8_t head[SL_RECORD_HEAD]);

/* Opens the whole record r of that length, in place, private memory. Returns the length of its content, which begins at r +
 * SL_RECORD_HEAD, and *type; or the negative alert. */
int sl_record_open(struct sl_half *h, uint8_t *r, uint32_t len, uint8_t *type);

#endif
