/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a guest, or its front-end, does what is legal so often that it costs others time. */
#ifndef SL_VHOST_STORM_H
#define SL_VHOST_STORM_H

#include "vhost/device.h"

enum {                                    /* more than these within a second are a storm */
	SL_VHOST_KICKS_MAX = 1 << 16,     /* beyond one for each frame */
	SL_VHOST_MESSAGES_MAX = 4096,     /* some 200 start a device with all its rings */
	SL_VHOST_STARTS_MAX = 16 * SL_VHOST_RINGS_MAX,
	SL_VHOST_LINKS_MAX = 20,
};

struct sl_vhost_storm {
	uint64_t begun_ns, base[4];       /* what was counted when the current second began; zeroed: none has */
};

/* Returns which SL_VHOST_STORM_ there is, or -1. */
int sl_vhost_storm_find(struct sl_vhost_storm *s, const struct sl_vhost *d);

#endif
