/* SPDX-License-Identifier: Apache-2.0 */
/* What this back-end offers to a front-end. Plain declarations: Python reads them too, for whoever answers a front-end in
 * place of the router (pipeline/host/vhost.py): the front-end later takes nobody who offers less. */
#ifndef SL_VHOST_OFFER_H
#define SL_VHOST_OFFER_H

#include <stdint.h>

enum { SL_VHOST_PAIRS_MAX = 8, SL_VHOST_REGIONS = 32 };

/* No checksum or segmentation offload in either direction, no indirect descriptors, no log. */
uint64_t sl_vhost_features(void);
uint64_t sl_vhost_protocol_features(void);

#endif
