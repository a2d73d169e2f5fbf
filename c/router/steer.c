/* SPDX-License-Identifier: Apache-2.0 */
#include <net/ethernet.h>
#include <netinet/in.h>

#include "router/steer.h"

/* ---- from the NIC ------------------------------------------------------------------------------------------------ */

/* Takes the VLAN tags out, in place: the addresses move up to the type field in front of the IP header. */
static void tags_strip(struct sl_frame *f)
{
	uint32_t tags_len = f->meta.l3_off - SL_ETH_LEN;
	uint8_t *start = f->seg[0].iov_base;

	if (!tags_len)
		return;
	memmove(start + tags_len, start, 12);
	f->seg[0].iov_base = start + tags_len;
	f->seg[0].iov_len -= tags_len;
	f->len -= tags_len;
}

static void flow_in(struct sl_router *r, struct sl_frame *f)
{
	uint16_t vm_id = f->meta.vm_id;
	struct sl_port *vm = r->vm[vm_id];
	struct sl_rtr_port *c;

	if (!vm) {
		sl_count_add(&r->count, SL_RTR_DROP_NO_PORT, 1);
		return;
	}
	tags_strip(f);
	c = sl_count_port(&r->count, vm_id);
	if (vm->ops->tx_burst(vm, f, 1) == 1) {
		sl_count_add(&r->count, SL_RTR_IN_FLOW, 1);
		c->in_packets++;
		c->in_bytes += f->len;
	} else {
		sl_count_add(&r->count, vm->error == -EAGAIN ? SL_RTR_DROP_PORT_FULL : SL_RTR_DROP_PORT_ERROR, 1);
		c->in_dropped++;
	}
}

static void arp_or_nd_in(struct sl_router *r, const struct sl_frame *f, uint64_t now_ns)
{
	bool is_arp = f->meta.kind == SL_META_ARP;
	const uint8_t *data = f->seg[0].iov_base;
	uint32_t len = (uint32_t)f->seg[0].iov_len;   /* such a frame is never longer than its first part */
	struct sl_wire_msg msg;
	int err;

	err = (is_arp ? sl_wire_parse_arp : sl_wire_parse_nd)(data, len, f->meta.l3_off, &msg);
	if (err)
		sl_count_add(&r->count, is_arp ? SL_RTR_DROP_BAD_ARP : SL_RTR_DROP_BAD_ND, 1);
	else if (sl_neighs_input(&r->neighs, &msg, now_ns))
		sl_count_add(&r->count, SL_RTR_DROP_UNWANTED, 1);
	else
		sl_count_add(&r->count, is_arp ? SL_RTR_IN_ARP : SL_RTR_IN_ND, 1);
}

/* The verdict is our own program's, but a wrong program may be attached: check before use. */
static bool meta_is_valid(const struct sl_frame *f)
{
	const struct sl_meta *m = &f->meta;

	if (m->l3_off < SL_ETH_LEN || m->l3_off > SL_ETH_LEN + SL_VLAN_MAX || m->l3_off % 4 != 2 ||
	    m->l3_off > f->seg[0].iov_len)
		return false;
	if (m->kind == SL_META_FLOW)
		return m->vm_id > 0 && m->vm_id < SL_VM_MAX;
	return m->kind == SL_META_ARP || m->kind == SL_META_ND;
}

uint32_t sl_steer_in(struct sl_router *r, struct sl_port *nic, uint64_t now_ns)
{
	struct sl_frame frames[SL_BURST];
	uint64_t oversize = nic->oversize;
	uint32_t i, n = nic->ops->rx_burst(nic, frames, SL_BURST);

	for (i = 0; i < n; i++) {
		if (!frames[i].meta.kind)
			sl_count_add(&r->count, SL_RTR_DROP_NO_META, 1);
		else if (!meta_is_valid(&frames[i]))
			sl_count_add(&r->count, SL_RTR_DROP_BAD_META, 1);
		else if (frames[i].meta.kind == SL_META_FLOW)
			flow_in(r, &frames[i]);
		else
			arp_or_nd_in(r, &frames[i], now_ns);
	}
	oversize = nic->oversize - oversize;
	sl_count_add(&r->count, SL_RTR_DROP_OVERSIZE, oversize);
	sl_count_add(&r->count, SL_RTR_IN, n + oversize);
	return n;
}

/* ---- from an instance -------------------------------------------------------------------------------------------- */

/* What a frame's headers say. */
struct out_addrs {
	struct sl_addr src, dst;
};

static int ip4_check(const uint8_t *ip, uint32_t len, struct out_addrs *ret)
{
	uint32_t header_len;

	if (len < 20)
		return SL_RTR_DROP_MALFORMED;
	header_len = (ip[0] & 15) * 4u;
	if (ip[0] >> 4 != 4 || header_len < 20 || sl_be16(ip + 2) < header_len || sl_be16(ip + 2) > len)
		return SL_RTR_DROP_MALFORMED;
	ret->src = sl_addr_from4(ip + 12);
	ret->dst = sl_addr_from4(ip + 16);
	return -1;
}

static int ip6_check(const uint8_t *ip, uint32_t len, struct out_addrs *ret)
{
	if (len < 40 || ip[0] >> 4 != 6 || sl_be16(ip + 4) > len - 40)
		return SL_RTR_DROP_MALFORMED;
	if (ip[7] == 255)
		return SL_RTR_DROP_FORGED_ND;
	ret->src = sl_addr_from6(ip + 8);
	ret->dst = sl_addr_from6(ip + 24);
	/* IPv4-mapped addresses never are on the wire; here they would pass for IPv4 */
	if (sl_addr_is4(&ret->src))
		return SL_RTR_DROP_SPOOFED;
	return sl_addr_is4(&ret->dst) ? SL_RTR_DROP_NO_ROUTE : -1;
}

/* "Nobody listens here": RST and ACK with the sequence number 0, the answer to a SYN (RFC 9293 section 3.10.7.1). An
 * instance that is sent a SYN listens; if it does not, it is dying, and the client's next SYN finds another. */
static bool is_refusal(const uint8_t *ip, uint32_t len)
{
	bool is4 = ip[0] >> 4 == 4;
	uint32_t at = is4 ? (ip[0] & 15) * 4u : 40;

	if (ip[is4 ? 9 : 6] != IPPROTO_TCP || (is4 && sl_be16(ip + 6) & 0x1fff) || len < at + 20)
		return false;
	return (ip[at + 13] & 0x16) == 0x14 && !ip[at + 4] && !ip[at + 5] && !ip[at + 6] && !ip[at + 7];
}

/* May this frame of an instance go out? -1, or the counter of the reason why not. The instance is hostile; the frame is
 * in memory that it can not reach. */
static int out_check(const struct sl_router *r, uint16_t vm_id, const uint8_t *frame, uint32_t len,
		     struct out_addrs *ret)
{
	int reason;

	if (len < SL_ETH_LEN)
		return SL_RTR_DROP_MALFORMED;
	if (frame[0] & 1)
		return SL_RTR_DROP_NOISE;
	if (len - SL_ETH_LEN > r->mtu)
		return SL_RTR_DROP_TOO_BIG;
	switch (sl_be16(frame + 12)) {
	case ETHERTYPE_IP:
		reason = ip4_check(frame + SL_ETH_LEN, len - SL_ETH_LEN, ret);
		break;
	case ETHERTYPE_IPV6:
		reason = ip6_check(frame + SL_ETH_LEN, len - SL_ETH_LEN, ret);
		break;
	default:
		return SL_RTR_DROP_NOT_IP;
	}
	if (reason < 0 && !sl_net_is_vip(&r->net, &ret->src, r->vips[vm_id]))
		reason = SL_RTR_DROP_SPOOFED;
	if (reason < 0 && is_refusal(frame + SL_ETH_LEN, len - SL_ETH_LEN))
		reason = SL_RTR_DROP_REFUSAL;
	return reason;
}

/* Addresses the frame to its next hop. -1: ready to be sent; 0: it waits for its neighbour; else the reason of the
 * drop. */
static int out_address(struct sl_router *r, uint16_t vm_id, struct sl_frame *f, uint64_t now_ns)
{
	uint8_t *data = f->seg[0].iov_base;
	const struct sl_addr *hop;
	struct out_addrs addrs;
	struct sl_neigh *e;
	int reason = out_check(r, vm_id, data, f->len, &addrs);

	if (reason >= 0)
		return reason;
	hop = sl_net_next_hop(&r->net, &addrs.dst);
	if (!hop)
		return SL_RTR_DROP_NO_ROUTE;
	e = sl_neighs_use(&r->neighs, hop, &addrs.src, now_ns);
	if (!e)
		return SL_RTR_DROP_NEIGH_BUSY;
	if (!sl_neigh_is_ready(e))
		return sl_neighs_wait(&r->neighs, e, data, f->len, vm_id) ? SL_RTR_DROP_NEIGH_BUSY : 0;
	f->seg[0].iov_base = sl_neigh_address(&r->neighs, e, data);
	f->seg[0].iov_len = f->len += e->tags.len;
	return -1;
}

static void out_send(struct sl_router *r, uint16_t vm_id, const struct sl_frame *frames, uint32_t n)
{
	struct sl_rtr_port *c = sl_count_port(&r->count, vm_id);
	struct sl_port *nic = r->nic[vm_id % r->nb_nic];
	uint32_t i, sent = nic->ops->tx_burst(nic, frames, n);

	for (i = 0; i < sent; i++)
		c->out_bytes += frames[i].len;
	c->out_packets += sent;
	c->out_dropped += n - sent;
	sl_count_add(&r->count, SL_RTR_OUT_SENT, sent);
	sl_count_add(&r->count, SL_RTR_DROP_NIC_FULL, n - sent);
}

/* A virtual machine's link: what became of it, and violations. */
static void link_count(struct sl_router *r, struct sl_port *vm)
{
	struct sl_rtr_port *c = &r->count.port[vm->vm_id];

	if (c->link == vm->link && !vm->nb_violation)
		return;
	c = sl_count_port(&r->count, vm->vm_id);
	sl_count_add(&r->count, SL_RTR_LINK_UP, vm->link == SL_RTR_LINK_IS_UP && c->link != vm->link);
	sl_count_add(&r->count, SL_RTR_LINK_LOST, c->link == SL_RTR_LINK_IS_UP && c->link != vm->link);
	sl_count_add(&r->count, SL_RTR_VIOLATION, vm->nb_violation);
	c->link = vm->link;
	if (vm->nb_violation)
		c->violation = vm->violation;
	c->violations += vm->nb_violation;
	vm->nb_violation = 0;
}

int sl_steer_out(struct sl_router *r, struct sl_port *vm, uint64_t now_ns)
{
	struct sl_frame frames[SL_BURST];
	uint64_t oversize = vm->oversize;
	uint32_t i, n, ready = 0;

	n = vm->ops->rx_burst(vm, frames, SL_BURST);
	for (i = 0; i < n; i++) {
		int reason = out_address(r, vm->vm_id, &frames[i], now_ns);

		if (reason < 0) {
			frames[ready++] = frames[i];
		} else if (reason > 0) {
			sl_count_add(&r->count, (enum sl_rtr_counter)reason, 1);
			sl_count_port(&r->count, vm->vm_id)->out_dropped++;
		}
	}
	if (ready)
		out_send(r, vm->vm_id, frames, ready);
	oversize = vm->oversize - oversize;
	if (oversize) {
		sl_count_add(&r->count, SL_RTR_DROP_TOO_BIG, oversize);
		sl_count_port(&r->count, vm->vm_id)->out_dropped += oversize;
	}
	sl_count_add(&r->count, SL_RTR_OUT, n + oversize);
	link_count(r, vm);
	return vm->error ? vm->error : (int)n;
}
