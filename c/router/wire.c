/* SPDX-License-Identifier: Apache-2.0 */
#include <net/ethernet.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>

#include "router/wire.h"

enum {
	ARP_LEN = 28,
	IP6_LEN = 40,
	ND_LEN = 24,          /* NS and NA: type, code, checksum, flags, target */
	ND_OPT_LEN = 8,       /* a link-layer address option for Ethernet */
	ND_HOP_LIMIT = 255,   /* proves that the message was not forwarded */
	NA_SOLICITED = 0x40,
	NA_OVERRIDE = 0x20,
};

static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
/* hardware Ethernet, protocol IPv4, address lengths 6 and 4 */
static const uint8_t arp_kind[6] = { 0, 1, ETHERTYPE_IP >> 8, 0, 6, 4 };

/* ---- parse ------------------------------------------------------------------------------------------------------- */

static int eth_parse(const uint8_t *frame, uint32_t len, uint32_t l3_off, uint16_t type, struct sl_wire_msg *ret)
{
	if (l3_off < SL_ETH_LEN || l3_off > SL_ETH_LEN + SL_VLAN_MAX || l3_off % 4 != 2 || len < l3_off)
		return -EBADMSG;
	if (sl_be16(frame + l3_off - 2) != type || !sl_mac_is_unicast(frame + 6))
		return -EBADMSG;
	*ret = (struct sl_wire_msg){ .tags.len = (uint8_t)(l3_off - SL_ETH_LEN) };
	memcpy(ret->eth_src, frame + 6, 6);
	memcpy(ret->tags.b, frame + 12, ret->tags.len);
	return 0;
}

int sl_wire_parse_arp(const uint8_t *frame, uint32_t len, uint32_t l3_off, struct sl_wire_msg *ret)
{
	static const uint8_t nobody[4];
	const uint8_t *arp = frame + l3_off;

	if (eth_parse(frame, len, l3_off, ETHERTYPE_ARP, ret) || len - l3_off < ARP_LEN)
		return -EBADMSG;
	if (memcmp(arp, arp_kind, sizeof(arp_kind)) || arp[6] != 0 || (arp[7] != 1 && arp[7] != 2))
		return -EBADMSG;
	if (!sl_mac_is_unicast(arp + 8))
		return -EBADMSG;
	ret->is_reply = ret->solicited = ret->is_override = arp[7] == 2;
	ret->has_mac = true;
	memcpy(ret->mac, arp + 8, 6);
	if (memcmp(arp + 14, nobody, 4))
		ret->about = sl_addr_from4(arp + 14);
	ret->target = sl_addr_from4(arp + 24);
	return 0;
}

uint16_t sl_wire_checksum(uint32_t proto, const uint8_t *addrs, uint32_t addrs_len, const uint8_t *msg, uint32_t len)
{
	uint32_t sum = proto ? proto + len : 0, i;

	for (i = 0; i < addrs_len; i += 2)
		sum += sl_be16(addrs + i);
	for (i = 0; i + 1 < len; i += 2)
		sum += sl_be16(msg + i);
	if (len & 1)
		sum += (uint32_t)msg[len - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* Looks for the link-layer address option. */
static int nd_options_parse(const uint8_t *opt, uint32_t len, uint8_t wanted, struct sl_wire_msg *ret)
{
	while (len) {
		uint32_t opt_len = len < 2 ? 0 : opt[1] * 8u;

		if (!opt_len || opt_len > len)
			return -EBADMSG;
		if (opt[0] == wanted && opt_len == ND_OPT_LEN) {
			if (!sl_mac_is_unicast(opt + 2))
				return -EBADMSG;
			memcpy(ret->mac, opt + 2, 6);
			ret->has_mac = true;
		}
		opt += opt_len;
		len -= opt_len;
	}
	return 0;
}

static bool is_mapped(const uint8_t *ip6)
{
	struct sl_addr a = sl_addr_from6(ip6);

	return sl_addr_is4(&a);
}

/* The rules of RFC 4861 section 7.1. */
int sl_wire_parse_nd(const uint8_t *frame, uint32_t len, uint32_t l3_off, struct sl_wire_msg *ret)
{
	const uint8_t *ip6 = frame + l3_off, *icmp = ip6 + IP6_LEN;
	struct sl_addr src, dst;
	uint32_t nd_len;
	uint8_t wanted;
	bool is_na;

	if (eth_parse(frame, len, l3_off, ETHERTYPE_IPV6, ret) || len - l3_off < IP6_LEN + ND_LEN)
		return -EBADMSG;
	nd_len = sl_be16(ip6 + 4);
	if (ip6[0] >> 4 != 6 || ip6[6] != IPPROTO_ICMPV6 || ip6[7] != ND_HOP_LIMIT || nd_len < ND_LEN ||
	    nd_len > len - l3_off - IP6_LEN)
		return -EBADMSG;
	if ((icmp[0] != ND_NEIGHBOR_SOLICIT && icmp[0] != ND_NEIGHBOR_ADVERT) || icmp[1])
		return -EBADMSG;
	if (sl_wire_checksum(IPPROTO_ICMPV6, ip6 + 8, 32, icmp, nd_len))
		return -EBADMSG;
	/* no IPv4-mapped address on the wire: it would pass for an IPv4 neighbour */
	if (is_mapped(ip6 + 8) || is_mapped(ip6 + 24) || is_mapped(icmp + 8) || icmp[8] == 0xff)
		return -EBADMSG;
	is_na = icmp[0] == ND_NEIGHBOR_ADVERT;
	wanted = is_na ? ND_OPT_TARGET_LINKADDR : ND_OPT_SOURCE_LINKADDR;
	if (nd_options_parse(icmp + ND_LEN, nd_len - ND_LEN, wanted, ret))
		return -EBADMSG;
	src = sl_addr_from6(ip6 + 8);
	dst = sl_addr_from6(ip6 + 24);
	ret->is_reply = is_na;
	ret->solicited = is_na && icmp[4] & NA_SOLICITED;
	ret->is_override = is_na && icmp[4] & NA_OVERRIDE;
	ret->about = is_na ? sl_addr_from6(icmp + 8) : src;
	ret->target = is_na ? dst : sl_addr_from6(icmp + 8);
	if (is_na)
		return ret->solicited && dst.b[0] == 0xff ? -EBADMSG : 0;
	if (sl_addr_is_zero(&src))   /* duplicate address detection: to a multicast group, with no address to tell */
		return ret->has_mac || dst.b[0] != 0xff ? -EBADMSG : 0;
	return 0;
}

/* ---- build ------------------------------------------------------------------------------------------------------- */

/* Returns where the payload starts. */
static uint8_t *eth_build(uint8_t *buf, const uint8_t dst[6], const uint8_t src[6], const struct sl_tags *tags,
			  uint16_t type)
{
	memcpy(buf, dst, 6);
	memcpy(buf + 6, src, 6);
	memcpy(buf + 12, tags->b, tags->len);
	sl_be16_put(buf + 12 + tags->len, type);
	return buf + SL_ETH_LEN + tags->len;
}

static void arp_build(uint8_t *arp, uint8_t op, const uint8_t mac[6], const struct sl_addr *ip, const uint8_t to_mac[6],
		      const struct sl_addr *to)
{
	memcpy(arp, arp_kind, sizeof(arp_kind));
	sl_be16_put(arp + 6, op);
	memcpy(arp + 8, mac, 6);
	memcpy(arp + 14, ip->b + 12, 4);
	memcpy(arp + 18, to_mac, 6);
	memcpy(arp + 24, to->b + 12, 4);
}

static void nd_build(uint8_t *ip6, uint8_t type, uint8_t flags, const struct sl_addr *src, const struct sl_addr *dst,
		     const struct sl_addr *target, const uint8_t mac[6])
{
	uint8_t *icmp = ip6 + IP6_LEN;

	memset(ip6, 0, IP6_LEN + ND_LEN);
	ip6[0] = 0x60;
	sl_be16_put(ip6 + 4, ND_LEN + ND_OPT_LEN);
	ip6[6] = IPPROTO_ICMPV6;
	ip6[7] = ND_HOP_LIMIT;
	memcpy(ip6 + 8, src, 16);
	memcpy(ip6 + 24, dst, 16);
	icmp[0] = type;
	icmp[4] = flags;
	memcpy(icmp + 8, target, 16);
	icmp[ND_LEN] = type == ND_NEIGHBOR_ADVERT ? ND_OPT_TARGET_LINKADDR : ND_OPT_SOURCE_LINKADDR;
	icmp[ND_LEN + 1] = 1;
	memcpy(icmp + ND_LEN + 2, mac, 6);
	sl_be16_put(icmp + 2, sl_wire_checksum(IPPROTO_ICMPV6, ip6 + 8, 32, icmp, ND_LEN + ND_OPT_LEN));
}

uint32_t sl_wire_build_request(uint8_t *buf, const uint8_t mac[6], const struct sl_tags *tags,
			       const struct sl_addr *vip, const struct sl_addr *target, const uint8_t *to)
{
	static const uint8_t unknown[6];
	const uint8_t *t = target->b;
	/* the solicited-node group of target, and its Ethernet address */
	struct sl_addr group = {{ 0xff, 0x02, [11] = 1, 0xff, t[13], t[14], t[15] }};
	uint8_t group_mac[6] = { 0x33, 0x33, 0xff, t[13], t[14], t[15] };
	uint8_t *l3;

	if (sl_addr_is4(target)) {
		l3 = eth_build(buf, to ? to : broadcast, mac, tags, ETHERTYPE_ARP);
		arp_build(l3, 1, mac, vip, unknown, target);
		return (uint32_t)(l3 - buf) + ARP_LEN;
	}
	l3 = eth_build(buf, to ? to : group_mac, mac, tags, ETHERTYPE_IPV6);
	nd_build(l3, ND_NEIGHBOR_SOLICIT, 0, vip, to ? target : &group, target, mac);
	return (uint32_t)(l3 - buf) + IP6_LEN + ND_LEN + ND_OPT_LEN;
}

uint32_t sl_wire_build_reply(uint8_t *buf, const uint8_t mac[6], const struct sl_wire_msg *msg)
{
	static const struct sl_addr all_nodes = {{ 0xff, 0x02, [15] = 1 }};
	static const uint8_t all_nodes_mac[6] = { 0x33, 0x33, 0, 0, 0, 1 };
	bool is_probe = sl_addr_is_zero(&msg->about);
	struct sl_addr to = is_probe ? sl_addr_from4((const uint8_t[4]){ 0 }) : msg->about;
	const uint8_t *to_mac = msg->has_mac ? msg->mac : msg->eth_src;
	uint8_t *l3;

	if (sl_addr_is4(&msg->target)) {
		l3 = eth_build(buf, to_mac, mac, &msg->tags, ETHERTYPE_ARP);
		arp_build(l3, 2, mac, &msg->target, msg->mac, &to);
		return (uint32_t)(l3 - buf) + ARP_LEN;
	}
	if (is_probe) {   /* somebody is about to take our address: tell everybody that it is ours */
		l3 = eth_build(buf, all_nodes_mac, mac, &msg->tags, ETHERTYPE_IPV6);
		nd_build(l3, ND_NEIGHBOR_ADVERT, NA_OVERRIDE, &msg->target, &all_nodes, &msg->target, mac);
	} else {
		l3 = eth_build(buf, to_mac, mac, &msg->tags, ETHERTYPE_IPV6);
		nd_build(l3, ND_NEIGHBOR_ADVERT, NA_SOLICITED | NA_OVERRIDE, &msg->target, &msg->about, &msg->target,
			 mac);
	}
	return (uint32_t)(l3 - buf) + IP6_LEN + ND_LEN + ND_OPT_LEN;
}
