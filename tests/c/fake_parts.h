/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the stand-in share; tests need fake_flow.h only. */
#ifndef SL_FAKE_PARTS_H
#define SL_FAKE_PARTS_H

#include "fake_flow.h"

/* A flow of the world, by the layer or by the test, with this OPEN. */
struct fake_flow *fake_flow_new(struct fake *k, bool by_layer, const void *msg, uint32_t len, uint32_t flags);
/* One call of data() with bytes of their own. Returns what it took. */
uint32_t fake_data_show(struct fake_flow *ff, const uint8_t *p, uint32_t len);
/* fin(), if it is due. */
void fake_fin_deliver(struct fake_flow *ff);

#endif
