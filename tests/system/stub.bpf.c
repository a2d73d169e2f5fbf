/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* A stand-in for the classifier, just enough to test the router alone: what is for the two virtual IPs of the lab, ARP
 * and neighbour discovery about them included, goes to instance 1; VLAN tags are skipped. "broken" spoils the
 * verdicts. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi/classifier.h"

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} xsks SEC(".maps");

enum { BROKEN_NO = 0, BROKEN_NONE = 1, BROKEN_KIND = 2, BROKEN_OFFSET = 3, BROKEN_VM = 4 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} broken SEC(".maps");

const __u8 vip4[4] = { 10, 77, 0, 10 };
const __u8 vip6[16] = { 0xfd, 0x77, [15] = 0x10 };

#define FITS(p, n) ((void *)(p) + (n) <= end)

static __always_inline int same(const __u8 *a, const __u8 *b, int n)
{
	for (int i = 0; i < n; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* enum sl_meta_kind, or 0: not ours */
static __always_inline int kind_of(__u8 *l3, void *end, __u16 type)
{
	if (type == ETH_P_ARP)
		return FITS(l3, 28) && same(l3 + 24, vip4, 4) ? SL_META_ARP : 0;
	if (type == ETH_P_IP)
		return FITS(l3, 20) && same(l3 + 16, vip4, 4) ? SL_META_FLOW : 0;
	if (type != ETH_P_IPV6 || !FITS(l3, 40))
		return 0;
	if (l3[6] == 58 && FITS(l3, 64) && l3[40] == 135)
		return same(l3 + 48, vip6, 16) ? SL_META_ND : 0;
	if (!same(l3 + 24, vip6, 16))
		return 0;
	return l3[6] == 58 && FITS(l3, 64) && l3[40] == 136 ? SL_META_ND : SL_META_FLOW;
}

SEC("xdp.frags") int stub(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	__u8 *frame = (void *)(long)ctx->data, *l3 = frame + 14;
	__u32 zero = 0, *how = bpf_map_lookup_elem(&broken, &zero);
	struct sl_meta *m;
	__u16 type, off = 14;
	int kind;

	if (!how || !FITS(frame, 14))
		return XDP_PASS;
	type = bpf_ntohs(*(__be16 *)(l3 - 2));
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (type != ETH_P_8021Q && type != ETH_P_8021AD)
			break;
		l3 += 4;
		off += 4;
		if (!FITS(l3, 0))
			return XDP_PASS;
		type = bpf_ntohs(*(__be16 *)(l3 - 2));
	}
	kind = kind_of(l3, end, type);
	if (!kind)
		return XDP_PASS;
	if (*how != BROKEN_NONE) {
		if (bpf_xdp_adjust_meta(ctx, (int)(ctx->data - ctx->data_meta) - (int)sizeof(*m)))
			return XDP_DROP;
		m = (void *)(long)ctx->data_meta;
		if ((void *)(m + 1) > (void *)(long)ctx->data)
			return XDP_DROP;
		*m = (struct sl_meta){
			.magic = SL_META_MAGIC, .vm_id = kind == SL_META_FLOW, .l3_off = off, .kind = kind,
		};
		if (*how == BROKEN_KIND)
			m->kind = 77;
		if (*how == BROKEN_OFFSET)
			m->l3_off = 15;
		if (*how == BROKEN_VM)
			m->vm_id = SL_VM_MAX;
	}
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
}

char _license[] SEC("license") = "Dual BSD/GPL";
