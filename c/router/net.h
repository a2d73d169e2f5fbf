/* SPDX-License-Identifier: Apache-2.0 */
/* What the router knows about addresses: the virtual IPs, and which neighbour leads to which destination. Pure; no I/O.
 * An address is 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. */
#ifndef SL_NET_H
#define SL_NET_H

#include "abi/router.h"
#include "base/base.h"

struct sl_addr {
	uint8_t b[16];
};

struct sl_route {
	struct sl_addr prefix, gateway;          /* gateway all zero: on-link */
	uint8_t prefix_len;
};

struct sl_net {
	uint64_t vips;                           /* slots in use */
	struct sl_addr vip[SL_RTR_VIP_MAX];
	uint32_t nb_route;
	struct sl_route route[SL_RTR_NET_MAX];   /* longest prefix first */
};

static inline bool sl_addr_equal(const struct sl_addr *a, const struct sl_addr *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static inline bool sl_addr_is_zero(const struct sl_addr *a)
{
	static const struct sl_addr zero;

	return sl_addr_equal(a, &zero);
}

struct sl_addr sl_addr_from4(const uint8_t ip4[4]);
struct sl_addr sl_addr_from6(const uint8_t ip6[16]);
bool sl_addr_is4(const struct sl_addr *a);
bool sl_addr_is_unicast(const struct sl_addr *a);   /* not multicast, broadcast, unspecified or loopback */

/* VIPs. set: 0, -EINVAL (slot, or not unicast), -EEXIST (another slot has it). del: 0, -EINVAL, -ENOENT. */
int sl_net_vip_set(struct sl_net *n, uint8_t slot, const struct sl_addr *vip);
int sl_net_vip_del(struct sl_net *n, uint8_t slot);
/* Whether a is the address of one of the slots in mask. */
bool sl_net_is_vip(const struct sl_net *n, const struct sl_addr *a, uint64_t mask);

/* Routes: 0, -EINVAL (prefix_len > 128, bits beyond it, gateway not unicast or of the other family), -ENOSPC. */
int sl_net_route_set(struct sl_net *n, const struct sl_route *r);
void sl_net_route_clear(struct sl_net *n);
/* The neighbour that takes frames for dst: dst itself if on-link, else its gateway; NULL: no route. Points into n or to
 * dst. IPv6 link-local addresses are always on-link: there is only one link. */
const struct sl_addr *sl_net_next_hop(const struct sl_net *n, const struct sl_addr *dst);
bool sl_net_is_gateway(const struct sl_net *n, const struct sl_addr *a);
/* May a be a neighbour of ours: on-link or a gateway, unicast, and not a VIP. */
bool sl_net_is_neighbour(const struct sl_net *n, const struct sl_addr *a);

#endif
