/* SPDX-License-Identifier: Apache-2.0 */
/* The network of a tcp instance: one interface eth0, in a network namespace or guest of its own, that holds the virtual
 * IPs. The instance has no right to any of this; who has sets it up from outside: the manager for a process, the first
 * process of a guest for the instance in it. */
#ifndef SL_TCP_NET_H
#define SL_TCP_NET_H

#include "abi/control.h"

enum { SL_LISTENERS_MAX = 64 };   /* an address of a service each */

struct sl_listener {
	int fd;
	__u32 service;
};

/* What of that does not depend on an assignment, so that it need not be done when there is one: lo and eth0 up, the next
 * hops. Without eth0, or when something fails, the set-up does it or tells. */
void sl_net_prepare(void);

/* Waits until eth0 is there, brings it (with the assignment's MTU) and lo up, gives it the virtual IPs of the TCP
 * services that begin at this assignment's layer, and default routes of both families to the router's next hops
 * (abi/router.h). Opens a listening socket, not blocking, on each address. To be called in the namespace. Returns how
 * many are in *ret, or -errno: -ETIMEDOUT without eth0. */
int sl_net_setup(const struct sl_assignment *a, int backlog, int timeout_ms, struct sl_listener *ret);

#endif
