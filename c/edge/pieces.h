/* SPDX-License-Identifier: Apache-2.0 */
/* A queue of bytes in private memory: what a receiver has not taken yet, or what a sender may have to send again. With
 * cut set, the pieces that were added stay apart. All zero is an empty queue. */
#ifndef SL_PIECES_H
#define SL_PIECES_H

#include <stdbool.h>
#include <stdint.h>

struct sl_pieces {
	uint8_t *data;
	uint32_t pos, len, cap;   /* data[pos ... len) is in use; with cut each piece has its length in front, 4 bytes */
	uint32_t bytes;           /* without these lengths */
	bool cut;
};

/* false: no memory */
bool sl_pieces_add(struct sl_pieces *s, const uint8_t *p, uint32_t len);
/* The piece at *at (0: the first), or all bytes from there on; NULL: there is none. *at goes on behind it. */
const uint8_t *sl_pieces_next(const struct sl_pieces *s, uint32_t *at, uint32_t *len);
/* Forgets the first len bytes. false: so many are not there, or they end within a piece that was cut. */
bool sl_pieces_drop(struct sl_pieces *s, uint32_t len);
void sl_pieces_free(struct sl_pieces *s);   /* empties it; cut stays */

#endif
