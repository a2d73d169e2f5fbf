/* SPDX-License-Identifier: Apache-2.0 */
/* How an established TLS 1.3 connection outlives its tls instance.
 *
 *   tcp   keeps    the ciphertext whose plaintext http may not have   the sealed state   marks: tx got, rx safe
 *   http  keeps    the plaintext whose ciphertext tcp may not have    a token            marks: rx got, tx safe
 *   tls   has      nothing that is not in one of them, or can be made from it
 *
 * A mark is the number of a record: generation and sequence number of the one that follows. tls puts the mark behind a
 * record's bytes into the DATA that carries them, and into each ACK the mark at which the kept bytes now begin.
 *
 * Invariants
 *  1. One DATA from http is one record; http sends what it keeps again in the same pieces. So a record is a function of its
 *     number, and no instance ever encrypts two plaintexts under one nonce, whatever died when.
 *  2. What tls itself puts into the sequence (key update, closing alert) is announced to http by an ACK whose mark says
 *     which record it is, and sent only after http has taken that, and announced only when all in
 *     front of it is published to tcp. close_notify after http's FIN needs none: it is the
 *     record behind http's last one.
 *  3. A record goes to http in one DATA as a whole, and to tcp in one DATA as a whole: no end ever has half of one.
 *  4. tls acknowledges to one end only what it has published to the other end, and an end takes all that a dead peer has
 *     published. So each byte is kept by its sender or is at the other end.
 *
 * At a death, then, whatever the instance was doing: tcp opens the flow at another tls instance with the sealed state and its
 * marks; that one opens it at http with the token; http, once it has taken all that the former one had published (even the
 * OPEN may still be on its way), answers with its marks. tls takes tcp's ciphertext from "rx safe" on and drops what is before
 * http's "rx got"; takes http's plaintext from "tx safe" on and drops what is before tcp's "tx got". Either order of marks that
 * can not be (safe beyond got) means that bytes are missing: the connection is reset.
 *
 * Who is trusted: sequence numbers of what we send come from http's marks alone. tcp is no better than the network: a mark
 * that it invents, or a state that it gives back twice, late or for another connection, at worst breaks that connection.
 * http has the plaintext anyway. The state is sealed under a key that only the tls pool has, bound to the connection's
 * request_id; the token, which only that state and http know, is what http lets itself be taken over by. A flow is only taken
 * over after its former peer is lost or has given it up, so there is one tls instance at a time.
 *
 * Key updates: tls re-seals once both ends' marks are in the new generations, so that old secrets can be forgotten. TLS 1.2
 * connections and handshakes stay with OpenSSL and do not move. */
#ifndef SL_TLS_MOVE_H
#define SL_TLS_MOVE_H

#include "layers/tls/record.h"

#include "abi/control.h"

/* 1 << 63, so that 0 is "none"; generation; what tls puts into the place of this record; sequence number, in the first
 * generation not counting the records of the handshake (session tickets) */
enum { SL_MARK_GEN_SHIFT = 50 };
#define SL_MARK_VALID (1ull << 63)
#define SL_MARK_END (1ull << 49)    /* the closing alert: nothing comes behind it */
#define SL_MARK_UPDATE (1ull << 48)   /* a key update: what follows is in the next generation */
#define SL_MARK_SEQ (SL_MARK_UPDATE - 1)

static inline uint64_t sl_mark(uint16_t gen, uint64_t seq)
{
	return SL_MARK_VALID | (uint64_t)gen << SL_MARK_GEN_SHIFT | seq;
}

static inline uint16_t sl_mark_gen(uint64_t mark)
{
	return (uint16_t)(mark >> SL_MARK_GEN_SHIFT & 0x1fff);
}

/* What is sealed */
struct sl_tls_state {
	uint64_t request_id;
	uint64_t tx_first;            /* sequence number of the first record behind the handshake's */
	uint16_t suite;
	uint16_t http_vm;
	uint16_t service;
	uint16_t rx_gen, tx_gen;      /* of the secrets */
	uint8_t token[SL_TOKEN_LEN];
	uint8_t rx_secret[SL_SECRET_MAX], tx_secret[SL_SECRET_MAX];
};

enum {
	SL_SEAL_SALT = 16,
	SL_SEALED_LEN = SL_SEAL_SALT + sizeof(struct sl_tls_state) + SL_RECORD_TAG,
};

/* Each state is sealed by AES-256-GCM under a key of its own, made from the pool's and a random salt: no nonce repeats
 * however many are sealed. False: the library failed. */
bool sl_state_seal(struct sl_crypto *k, const struct sl_pool_key *pool, const struct sl_tls_state *st,
		   uint8_t out[SL_SEALED_LEN]);
/* False: not sealed under this key, or tampered with. */
bool sl_state_unseal(struct sl_crypto *k, const struct sl_pool_key *pool, const void *sealed, uint32_t len,
		     struct sl_tls_state *st);

#endif
