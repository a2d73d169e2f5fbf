/* SPDX-License-Identifier: Apache-2.0 */
/* Random records through c/crypto, compared with what OpenSSL, called by itself, makes of them. */
#ifndef SL_AEAD_RIG_H
#define SL_AEAD_RIG_H

#include "crypto/aead.h"

/* Batches of records sealed, opened, opened in place, and opened with a bit changed: cmocka fails if any status or byte
 * is not right. */
void aead_check(struct sl_aead *a, uint32_t rounds);

#endif
