/* SPDX-License-Identifier: Apache-2.0 */
/* The network of a tcp instance: one interface eth0 in a network namespace (or guest) of its own, which holds the
 * virtual IPs. */
#ifndef SL_TCP_NET_H
#define SL_TCP_NET_H

#include <stdint.h>

struct sl_net;

/* Waits until eth0 is there (the manager, or the hypervisor, plugs it in), then brings it, with this MTU, and lo up. 0,
 * -ETIMEDOUT, -errno. */
int sl_net_open(uint32_t mtu, int timeout_ms, struct sl_net **ret);
void sl_net_close(struct sl_net *n);
/* Adds a virtual IP (IPv4-mapped or IPv6, host prefix), ready for use at once. */
int sl_net_addr_add(struct sl_net *n, const uint8_t addr[16]);
/* Default routes of both families to the router's next hops, with permanent neighbour entries (abi/router.h). */
int sl_net_routes_add(struct sl_net *n);

#endif
