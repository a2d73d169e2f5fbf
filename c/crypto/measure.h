/* SPDX-License-Identifier: Apache-2.0 */
/* How fast this processor, or this device, really is: measured, because a card's name does not tell, and published
 * cards lose to vector instructions. */
#ifndef SL_MEASURE_H
#define SL_MEASURE_H

#include "crypto/aead.h"

/* Seals records of the three sizes of struct sl_crypto_figures, budget_ns (of the processor's time, of a device's) for
 * each, and sets seal_mbps, kind and fallbacks; handshakes stays. 0, -ENOMEM. */
int sl_measure_seal(struct sl_aead *a, uint64_t budget_ns, struct sl_crypto_figures *ret);

/* Server sides of TLS 1.3 handshakes per second, by the fastest of at least two, for budget_ns of the client's and the
 * server's time together. 0, -ENOMEM, -EIO. */
int sl_measure_handshakes(uint64_t budget_ns, uint32_t *ret);

/* The time that one record of each size would take, in ns: what is smaller is better. */
uint64_t sl_measure_cost_ns(const struct sl_crypto_figures *f);

/* Opens OpenSSL, libipsec-mb if it is there, and device if it is not NULL (taken over), measures each for budget_ns,
 * and returns OpenSSL, or what is faster at every size. figures: of that one. 0, -ENOMEM. */
int sl_measure_choose(struct sl_aead_engine *device, uint64_t budget_ns, struct sl_aead **ret,
		      struct sl_crypto_figures *figures);

/* Opens again what was chosen without a device, from its figures. 0, -ENOMEM. */
int sl_measure_recall(const struct sl_crypto_figures *figures, struct sl_aead **ret);

#endif
