/* SPDX-License-Identifier: Apache-2.0 */
/* Resets in the name of instances that can not send them: a virtual machine that dies takes its kernel along, and with it
 * all that was known of its connections. A client that has said everything and waits would do so for ever. */
#ifndef SL_RESET_H
#define SL_RESET_H

#include "router/steer.h"

/* Carries out SL_RTR_RESET. A client takes a reset whose sequence number is just what it expects (RFC 5961 section 3.2), so
 * it must come from the client's own last segment; if that was followed by another, this went to a living instance, which
 * has answered with a reset of its own. 0, -EINVAL, -ENOENT, -ENETUNREACH, -EAGAIN. */
int sl_reset_send(struct sl_router *r, const struct sl_rtr_request *q, uint64_t now_ns);

#endif
