/* SPDX-License-Identifier: Apache-2.0 */
/* ARP (RFC 826, 5227) and IPv6 neighbour discovery (RFC 4861) on the wire: frame -> one common form, and back. Pure; no
 * I/O. Frames are hostile: parse functions read nothing behind len and accept nothing that the RFC tells a node to
 * discard. */
#ifndef SL_WIRE_H
#define SL_WIRE_H

#include "router/net.h"
#include "router/ports/port.h"

enum { SL_WIRE_MAX = SL_ETH_LEN + SL_VLAN_MAX + 40 + 32 };   /* the longest frame built: NS or NA with one option */

/* Our side of the wire, and the VLAN tags, as bytes, that a neighbour is reached with. */
struct sl_tags {
	uint8_t b[SL_VLAN_MAX];
	uint8_t len;                     /* 0, 4 or 8 */
};

/* An ARP or ND message. */
struct sl_wire_msg {
	bool is_reply;                   /* ARP reply, NA; else ARP request, NS */
	bool has_mac;                    /* always for ARP; ND: the link-layer address option is there */
	bool solicited, is_override;     /* of a reply; ARP replies are taken as both */
	uint8_t mac[6];                  /* the link-layer address of "about" */
	uint8_t eth_src[6];              /* who sent the frame */
	struct sl_addr about;            /* request: who asks, all zero for a probe (DAD); reply: who answers */
	struct sl_addr target;           /* request: who is asked for; reply: to whom it is sent */
	struct sl_tags tags;
};

static inline uint16_t sl_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline void sl_be16_put(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

/* The Internet checksum over a message and the pseudo-header of its protocol and its addresses, 8 or 32 bytes; without any
 * (0, NULL, 0) of the message alone. 0 if the message holds a right one. */
uint16_t sl_wire_checksum(uint32_t proto, const uint8_t *addrs, uint32_t addrs_len, const uint8_t *msg, uint32_t len);

static inline bool sl_mac_is_unicast(const uint8_t mac[6])
{
	static const uint8_t zero[6];

	return !(mac[0] & 1) && memcmp(mac, zero, 6);
}

/* l3_off: where the ARP or IPv6 header starts, 14, 18 or 22. Returns 0 or -EBADMSG. */
int sl_wire_parse_arp(const uint8_t *frame, uint32_t len, uint32_t l3_off, struct sl_wire_msg *ret);
int sl_wire_parse_nd(const uint8_t *frame, uint32_t len, uint32_t l3_off, struct sl_wire_msg *ret);

/* Builds the question who has target, asked by vip (both of one family); to: ask this link-layer address only, NULL:
 * everybody. buf has SL_WIRE_MAX bytes. Returns the frame's length. */
uint32_t sl_wire_build_request(uint8_t *buf, const uint8_t mac[6], const struct sl_tags *tags,
			       const struct sl_addr *vip, const struct sl_addr *target, const uint8_t *to);
/* Builds the answer that mac has msg->target, for a request. */
uint32_t sl_wire_build_reply(uint8_t *buf, const uint8_t mac[6], const struct sl_wire_msg *msg);

#endif
