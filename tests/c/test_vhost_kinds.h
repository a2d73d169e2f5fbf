/* SPDX-License-Identifier: Apache-2.0 */
/* For tests that run over all kinds of rings: what these are, and frames through them. */
#ifndef SL_TEST_VHOST_KINDS_H
#define SL_TEST_VHOST_KINDS_H

#include "test_vhost_rig.h"

enum { TO = 0, FROM = 1 };

struct kind {
	uint64_t features;
	uint16_t size, base;
};

#define NB_KINDS 5
extern const struct kind kinds[NB_KINDS];
extern struct sl_vq_buf bufs[32];   /* what recv_all got */

uint32_t recv_all(struct guest *g);                                   /* returns how many frames */
int send_one(struct guest *g, const void *frame, uint32_t len);
void assert_filled(const uint8_t *p, uint32_t len, uint8_t fill);
void for_kinds(void (*run)(struct guest *, const struct kind *));     /* each with a guest of its own */

#endif
