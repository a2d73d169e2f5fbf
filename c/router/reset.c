/* SPDX-License-Identifier: Apache-2.0 */
#include <net/ethernet.h>
#include <netinet/in.h>

#include "router/reset.h"
#include "router/wire.h"

enum {
	IP4_LEN = 20,
	IP6_LEN = 40,
	TCP_LEN = 20,
	TCP_OFFSET = TCP_LEN / 4 << 4,
	TCP_RST = 0x04,
	HOPS = 64,
};

/* Both return the length of the IP header. */
static uint32_t ip4_build(uint8_t *ip, const struct sl_addr *src, const struct sl_addr *dst)
{
	static const uint8_t head[] = { 0x45, 0, 0, IP4_LEN + TCP_LEN, 0, 0, 0x40, 0, HOPS, IPPROTO_TCP };

	memcpy(ip, head, sizeof(head));
	memcpy(ip + 12, src->b + 12, 4);
	memcpy(ip + 16, dst->b + 12, 4);
	sl_be16_put(ip + 10, sl_wire_checksum(0, NULL, 0, ip, IP4_LEN));
	return IP4_LEN;
}

static uint32_t ip6_build(uint8_t *ip, const struct sl_addr *src, const struct sl_addr *dst)
{
	static const uint8_t head[] = { 0x60, 0, 0, 0, 0, TCP_LEN, IPPROTO_TCP, HOPS };

	memcpy(ip, head, sizeof(head));
	memcpy(ip + 8, src->b, 16);
	memcpy(ip + 24, dst->b, 16);
	return IP6_LEN;
}

/* frame is zeroed. Returns its length. */
static uint32_t frame_build(uint8_t *frame, const struct sl_addr *src, const struct sl_rtr_request *q)
{
	struct sl_addr dst = sl_addr_from6(q->addr);
	bool is4 = sl_addr_is4(src);
	uint8_t *ip = frame + SL_ETH_LEN, *tcp;
	uint32_t ip_len, addr_off = is4 ? 12 : 8;

	sl_be16_put(frame + 12, is4 ? ETHERTYPE_IP : ETHERTYPE_IPV6);
	ip_len = is4 ? ip4_build(ip, src, &dst) : ip6_build(ip, src, &dst);
	tcp = ip + ip_len;
	sl_be16_put(tcp, q->service_port);
	sl_be16_put(tcp + 2, q->client_port);
	sl_be16_put(tcp + 4, q->tcp_seq >> 16);
	sl_be16_put(tcp + 6, q->tcp_seq);
	tcp[12] = TCP_OFFSET;
	tcp[13] = TCP_RST;
	sl_be16_put(tcp + 16, sl_wire_checksum(IPPROTO_TCP, ip + addr_off, ip_len - addr_off, tcp, TCP_LEN));
	return SL_ETH_LEN + ip_len + TCP_LEN;
}

int sl_reset_send(struct sl_router *r, const struct sl_rtr_request *q, uint64_t now_ns)
{
	uint8_t room[SL_VLAN_MAX + SL_ETH_LEN + IP6_LEN + TCP_LEN] = { 0 }, *data = room + SL_VLAN_MAX;
	struct sl_addr client = sl_addr_from6(q->addr);
	const struct sl_addr *vip, *hop;
	struct sl_frame f = { .nb_seg = 1 };
	struct sl_neigh *e;

	if (q->slot >= SL_RTR_VIP_MAX || !sl_addr_is_unicast(&client))
		return -EINVAL;
	if (!(r->net.vips >> q->slot & 1))
		return -ENOENT;
	vip = &r->net.vip[q->slot];
	if (sl_addr_is4(vip) != sl_addr_is4(&client))
		return -EINVAL;
	hop = sl_net_next_hop(&r->net, &client);
	if (!hop)
		return -ENETUNREACH;
	e = sl_neighs_use(&r->neighs, hop, vip, now_ns);
	if (!e || !sl_neigh_is_ready(e))
		return -EAGAIN;
	f.len = frame_build(data, vip, q) + e->tags.len;
	f.seg[0] = (struct iovec){ sl_neigh_address(&r->neighs, e, data), f.len };
	if (r->nic[0]->ops->tx_burst(r->nic[0], &f, 1) != 1)
		return -EAGAIN;
	sl_count_add(&r->count, SL_RTR_RESETS, 1);
	return 0;
}
