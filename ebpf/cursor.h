/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The header cursor and the headers it steps over. It walks a packet's headers from front to back. It only moves
 * forward, and never past either of two ends: the end of the readable bytes (the verifier's concern) and the end
 * that the IP header states (ours: Ethernet pads short frames, and what lies behind the datagram is not part of it). */
#ifndef SL_CURSOR_H
#define SL_CURSOR_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi/classifier.h"

enum {
	CURSOR_REACH = 0x3fff,      /* headers further from the frame's start than this are out of sight */
	DATAGRAM_MAX = 0x1ffff,     /* more bytes than any datagram and its link headers: not limited yet */
};

struct sl_cursor {
	void *start;    /* of the frame */
	void *pos;
	void *end;      /* of the frame's linear part */
	__u32 left;     /* bytes from pos to the end of the datagram */
};

/* A cursor off bytes into the frame, with left bytes before it. */
static __always_inline struct sl_cursor cursor_at(struct xdp_md *ctx, __u32 off, __u32 left)
{
	struct sl_cursor c = { .start = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };

	c.left = off <= CURSOR_REACH ? left : 0;
	c.pos = c.start + (off & CURSOR_REACH);
	return c;
}

static __always_inline __u32 cursor_offset(const struct sl_cursor *c)
{
	return c->pos - c->start;
}

/* The next len bytes (a constant), or NULL if there are not so many. */
static __always_inline void *cursor_take(struct sl_cursor *c, __u32 len)
{
	void *here = c->pos;

	if (len > c->left || here + len > c->end)
		return NULL;
	c->pos = here + len;
	c->left -= len;
	return here;
}

/* Step over len bytes (a variable, at most 2048, bounded so that the verifier sees it). False if there are not so
 * many. */
static __always_inline int cursor_skip(struct sl_cursor *c, __u32 len)
{
	if (len > c->left || len > 2048 || c->pos + len > c->end)
		return 0;
	c->pos += len;
	c->left -= len;
	return 1;
}

/* A length field was read: the datagram ends len bytes from here. A quoted datagram can not outgrow the one around
 * it. */
static __always_inline void cursor_limit(struct sl_cursor *c, __u32 len)
{
	if (len < c->left)
		c->left = len;
}

/* ---- headers ----------------------------------------------------------------------------------------------------- */

enum {
	VLAN_TAGS_MAX = 2,
	EXT_HEADERS_MAX = 4,
	IP_MORE_FRAGMENTS = 0x2000,
	IP_FRAGMENT_OFFSET = 0x1fff,
	IP6_MORE_FRAGMENTS = 1,
	IP6_FRAGMENT_OFFSET = 0xfff8,
};

enum l3_result {
	L3_OK,       /* the cursor is at the next header, unless the packet is a later fragment */
	L3_ALIEN,    /* not IP, or cut off before its addresses end */
	L3_BROKEN,   /* addresses are known, what follows makes no sense */
};

enum fragment { FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER };

struct packet {
	struct sl_flow_key key;
	__be32 frag_id;
	__be32 ack;      /* TCP: acknowledgment number; 0: none */
	__u32 off;       /* of the cursor, when it is handed to a function that is verified alone */
	__u32 left;
	__u8 fragment;   /* enum fragment */
	__u8 is_v6;
	__u8 is_syn;     /* TCP: the first segment of a connection */
	__u8 pad;
} __attribute__((aligned(8)));

struct vlan_header {
	__be16 tci;
	__be16 type;
};

struct ext_header {
	__u8 next;
	__u8 len;        /* in units of 8 bytes, without the first 8 */
	__be16 frag_off; /* fragment header only: offset, more-fragments bit */
	__be32 frag_id;  /* fragment header only */
};

struct arp_packet {
	__be16 hw_type;
	__be16 proto_type;
	__u8 hw_len;
	__u8 proto_len;
	__be16 op;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
};

enum {
	ICMP_DEST_UNREACH = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP6_DEST_UNREACH = 1,
	ICMP6_PARAMETER_PROBLEM = 4,   /* between them: packet too big, time exceeded */
	ICMP6_ECHO_REQUEST = 128,
	ICMP6_NEIGHBOUR_SOLICITATION = 135,
	ICMP6_NEIGHBOUR_ADVERTISEMENT = 136,
};

/* The first 8 bytes of ICMP and of ICMPv6. The kernel's own header for it includes <sys/socket.h>, which -target bpf
 * can not read. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

/* The EtherType behind at most two VLAN tags, in network order; 0 if the frame ends before it. */
static __always_inline __be16 ethernet_parse(struct sl_cursor *c)
{
	struct ethhdr *eth = cursor_take(c, sizeof(*eth));
	__be16 type = eth ? eth->h_proto : 0;

	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		struct vlan_header *tag;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		tag = cursor_take(c, sizeof(*tag));
		type = tag ? tag->type : 0;
	}
	return type;
}

static __always_inline void addr_map_v4(__u8 *addr, const void *v4)
{
	const __be32 words[3] = { 0, 0, bpf_htonl(0xffff) };

	__builtin_memcpy(addr, words, 12);
	__builtin_memcpy(addr + 12, v4, 4);
}

static __always_inline int addr_same(const __u8 *a, const __u8 *b)
{
	__u64 x[2], y[2];

	__builtin_memcpy(x, a, sizeof(x));
	__builtin_memcpy(y, b, sizeof(y));
	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline int addr_is_mapped(const __u8 *addr)
{
	__u64 high;
	__u32 mark;

	__builtin_memcpy(&high, addr, 8);
	__builtin_memcpy(&mark, addr + 8, 4);
	return !high && mark == bpf_htonl(0xffff);
}

/* Is a datagram of len bytes that starts at l3 whole? The readable part may be only the first of several buffers. */
static __always_inline int datagram_is_whole(struct xdp_md *ctx, struct sl_cursor *c, void *l3, __u32 len)
{
	__u64 before = l3 - c->start;

	barrier_var(before);   /* a number from here on: the compiler may not rearrange the pointers it came from */
	if (len <= (__u64)(c->end - l3))
		return 1;
	return before + len <= bpf_xdp_get_buff_len(ctx);
}

/* is_quote: inside of an ICMP error, where a datagram may be cut off */
static __always_inline int ipv4_parse(struct xdp_md *ctx, struct sl_cursor *c, struct packet *p, int is_quote)
{
	struct iphdr *ip = cursor_take(c, sizeof(*ip));
	__u32 head, len, frag;

	if (!ip || ip->version != 4)
		return L3_ALIEN;
	addr_map_v4(p->key.src, &ip->saddr);
	addr_map_v4(p->key.dst, &ip->daddr);
	p->key.proto = ip->protocol;
	head = ip->ihl * 4;
	len = bpf_ntohs(ip->tot_len);
	if (head < sizeof(*ip) || len < head || (!is_quote && !datagram_is_whole(ctx, c, ip, len)))
		return L3_BROKEN;
	frag = bpf_ntohs(ip->frag_off);
	if (frag & (IP_FRAGMENT_OFFSET | IP_MORE_FRAGMENTS)) {
		p->fragment = frag & IP_FRAGMENT_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->frag_id = ip->id;
	}
	cursor_limit(c, len - sizeof(*ip));
	return cursor_skip(c, head - sizeof(*ip)) ? L3_OK : L3_BROKEN;
}

static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline void fragment_header_parse(const struct ext_header *ext, struct packet *p)
{
	__u32 frag = bpf_ntohs(ext->frag_off);

	if (!(frag & (IP6_FRAGMENT_OFFSET | IP6_MORE_FRAGMENTS)))   /* atomic fragment (RFC 6946): a whole datagram */
		return;
	p->fragment = frag & IP6_FRAGMENT_OFFSET ? FRAGMENT_LATER : FRAGMENT_FIRST;
	p->frag_id = ext->frag_id;
}

/* Walk the extension headers in front of the upper layer, from p->off on; one more than the bound is broken. Headers
 * that are none of the four (ESP, AH, mobility, none) end the walk: they are a protocol of no service. Not static,
 * not inline: the verifier then checks it once, alone, not once for each way that leads here. */
__attribute__((noinline)) int ipv6_extensions_walk(struct xdp_md *ctx, struct packet *p)
{
	struct sl_cursor c;
	__u8 next;

	if (!p)   /* never: for the verifier */
		return L3_BROKEN;
	c = cursor_at(ctx, p->off, p->left);
	next = p->key.proto;
	for (int i = 0; i < EXT_HEADERS_MAX && is_extension(next); i++) {
		struct ext_header *ext = cursor_take(&c, sizeof(*ext));

		if (!ext)
			return L3_BROKEN;
		if (next == IPPROTO_FRAGMENT)
			fragment_header_parse(ext, p);
		else if (!cursor_skip(&c, ext->len * 8))
			return L3_BROKEN;
		if (p->fragment == FRAGMENT_LATER)
			return L3_OK;
		next = ext->next;
	}
	p->off = cursor_offset(&c);
	p->left = c.left;
	p->key.proto = next;
	return is_extension(next) ? L3_BROKEN : L3_OK;
}

static __always_inline int ipv6_parse(struct xdp_md *ctx, struct sl_cursor *c, struct packet *p, int is_quote)
{
	struct ipv6hdr *ip = cursor_take(c, sizeof(*ip));
	__u32 len;

	if (!ip || ip->version != 6)
		return L3_ALIEN;
	__builtin_memcpy(p->key.src, &ip->saddr, 16);
	__builtin_memcpy(p->key.dst, &ip->daddr, 16);
	if (addr_is_mapped(p->key.dst))   /* our form for IPv4: on the wire it could pass for one of those */
		return L3_ALIEN;
	p->is_v6 = 1;
	p->key.proto = ip->nexthdr;
	len = bpf_ntohs(ip->payload_len);
	if (!is_quote && !datagram_is_whole(ctx, c, ip, sizeof(*ip) + len))
		return L3_BROKEN;
	cursor_limit(c, len);
	if (!is_extension(ip->nexthdr))
		return L3_OK;
	p->off = cursor_offset(c);
	p->left = c->left;
	if (ipv6_extensions_walk(ctx, p) != L3_OK)
		return L3_BROKEN;
	*c = cursor_at(ctx, p->off, p->left);
	return L3_OK;
}

/* Ports of TCP or UDP; the whole header must be there. */
static __always_inline int ports_parse(struct sl_cursor *c, struct packet *p)
{
	if (p->key.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = cursor_take(c, sizeof(*tcp));

		if (!tcp)
			return 0;
		p->key.sport = tcp->source;
		p->key.dport = tcp->dest;
		p->is_syn = tcp->syn && !tcp->ack;
		if (tcp->ack)
			p->ack = tcp->ack_seq;
	} else {
		struct udphdr *udp = cursor_take(c, sizeof(*udp));

		if (!udp)
			return 0;
		p->key.sport = udp->source;
		p->key.dport = udp->dest;
	}
	return 1;
}

#endif
