/* SPDX-License-Identifier: Apache-2.0 */
#include "router/net.h"

static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

struct sl_addr sl_addr_from4(const uint8_t ip4[4])
{
	struct sl_addr a;

	memcpy(a.b, mapped, 12);
	memcpy(a.b + 12, ip4, 4);
	return a;
}

struct sl_addr sl_addr_from6(const uint8_t ip6[16])
{
	struct sl_addr a;

	memcpy(a.b, ip6, 16);
	return a;
}

bool sl_addr_is4(const struct sl_addr *a)
{
	return !memcmp(a->b, mapped, 12);
}

bool sl_addr_is_unicast(const struct sl_addr *a)
{
	static const struct sl_addr loopback6 = {{ [15] = 1 }};

	if (sl_addr_is4(a))   /* 0/8, 127/8, and 224/4 up to the broadcast address */
		return a->b[12] != 0 && a->b[12] != 127 && a->b[12] < 224;
	return a->b[0] != 0xff && !sl_addr_is_zero(a) && !sl_addr_equal(a, &loopback6);
}

static bool is_link_local6(const struct sl_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

/* ---- virtual IPs ------------------------------------------------------------------------------------------------- */

int sl_net_vip_set(struct sl_net *n, uint8_t slot, const struct sl_addr *vip)
{
	if (slot >= SL_RTR_VIP_MAX || !sl_addr_is_unicast(vip))
		return -EINVAL;
	if (sl_net_is_vip(n, vip, ~(1ull << slot)))
		return -EEXIST;
	n->vip[slot] = *vip;
	n->vips |= 1ull << slot;
	return 0;
}

int sl_net_vip_del(struct sl_net *n, uint8_t slot)
{
	if (slot >= SL_RTR_VIP_MAX)
		return -EINVAL;
	if (!(n->vips & 1ull << slot))
		return -ENOENT;
	n->vips &= ~(1ull << slot);
	return 0;
}

bool sl_net_is_vip(const struct sl_net *n, const struct sl_addr *a, uint64_t mask)
{
	for (mask &= n->vips; mask; mask &= mask - 1)
		if (sl_addr_equal(a, &n->vip[__builtin_ctzll(mask)]))
			return true;
	return false;
}

/* ---- routes ------------------------------------------------------------------------------------------------------ */

static bool prefix_matches(const struct sl_addr *prefix, uint8_t len, const struct sl_addr *a)
{
	uint8_t bytes = len / 8, bits = len % 8;

	if (memcmp(prefix->b, a->b, bytes))
		return false;
	return !bits || !((prefix->b[bytes] ^ a->b[bytes]) >> (8 - bits));
}

static bool route_is_valid(const struct sl_route *r)
{
	struct sl_addr host = { 0 };
	uint32_t i;

	if (r->prefix_len > 128)
		return false;
	for (i = 0; i < 128; i++)   /* bits behind the prefix */
		if (i >= r->prefix_len && r->prefix.b[i / 8] & 0x80 >> i % 8)
			host.b[i / 8] |= 0x80 >> i % 8;
	if (!sl_addr_is_zero(&host))
		return false;
	if (sl_addr_is4(&r->prefix) && r->prefix_len < 96)
		return false;
	if (sl_addr_is_zero(&r->gateway))
		return true;
	return sl_addr_is_unicast(&r->gateway) && sl_addr_is4(&r->gateway) == sl_addr_is4(&r->prefix);
}

int sl_net_route_set(struct sl_net *n, const struct sl_route *r)
{
	uint32_t i;

	if (!route_is_valid(r))
		return -EINVAL;
	for (i = 0; i < n->nb_route && n->route[i].prefix_len >= r->prefix_len; i++)
		if (n->route[i].prefix_len == r->prefix_len && sl_addr_equal(&n->route[i].prefix, &r->prefix)) {
			n->route[i] = *r;
			return 0;
		}
	if (n->nb_route == SL_RTR_NET_MAX)
		return -ENOSPC;
	memmove(&n->route[i + 1], &n->route[i], (n->nb_route - i) * sizeof(*r));
	n->route[i] = *r;
	n->nb_route++;
	return 0;
}

void sl_net_route_clear(struct sl_net *n)
{
	n->nb_route = 0;
}

static const struct sl_route *route_find(const struct sl_net *n, const struct sl_addr *dst)
{
	uint32_t i;

	for (i = 0; i < n->nb_route; i++) {
		const struct sl_route *r = &n->route[i];

		/* the IPv6 default route ::/0 must not catch ::ffff:a.b.c.d */
		if (sl_addr_is4(&r->prefix) == sl_addr_is4(dst) && prefix_matches(&r->prefix, r->prefix_len, dst))
			return r;
	}
	return NULL;
}

const struct sl_addr *sl_net_next_hop(const struct sl_net *n, const struct sl_addr *dst)
{
	const struct sl_route *r;

	if (!sl_addr_is_unicast(dst))
		return NULL;
	if (is_link_local6(dst))
		return dst;
	r = route_find(n, dst);
	if (!r)
		return NULL;
	return sl_addr_is_zero(&r->gateway) ? dst : &r->gateway;
}

bool sl_net_is_gateway(const struct sl_net *n, const struct sl_addr *a)
{
	uint32_t i;

	for (i = 0; i < n->nb_route; i++)
		if (sl_addr_equal(&n->route[i].gateway, a))
			return true;
	return false;
}

bool sl_net_is_neighbour(const struct sl_net *n, const struct sl_addr *a)
{
	const struct sl_addr *hop;

	if (!sl_addr_is_unicast(a) || sl_net_is_vip(n, a, ~0ull))
		return false;
	if (sl_net_is_gateway(n, a))
		return true;
	hop = sl_net_next_hop(n, a);
	return hop && sl_addr_equal(hop, a);
}
