/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The classifier: which instance does this packet belong to?
 *
 *   Ethernet -> VLAN tags -> ARP | IPv4 | IPv6 + extension headers -> TCP, UDP: flow | ICMP: echo, error, neighbours
 *
 * A flow that is known stays with its instance. A new one goes to the instance that the service's Maglev table names
 * for its hash. The answer rides in front of the frame to the router (struct sl_meta). What is of no service goes to
 * the kernel untouched. Rules: nothing is written before the verdict stands; a packet counts once, by name; what is
 * for a virtual IP and can not be delivered is dropped, never given to the kernel, which would answer with a reset. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi/classifier.h"
#include "cursor.h"
#include "maps.h"

/* A verdict is the place of its counter */
#define VERDICT(name) (__builtin_offsetof(struct sl_counters, name) / sizeof(__u64))
#define VERDICT_IS_PASS(v) ((v) < VERDICT(drop_malformed))
#define VERDICT_IS_DROP(v) ((v) >= VERDICT(drop_malformed) && (v) < VERDICT(flow_new))
enum { VERDICT_MAX = sizeof(struct sl_counters) / sizeof(__u64) };

/* ---- whose is it ------------------------------------------------------------------------------------------------- */

static __always_inline struct sl_vip *vip_find(const __u8 *addr)
{
	return bpf_map_lookup_elem(&vips, addr);
}

/* The verdict for a packet that can not be delivered: ours to drop, or the kernel's to judge. */
static __always_inline __u32 refuse(const struct packet *p, __u32 verdict)
{
	return vip_find(p->key.dst) ? verdict : VERDICT(pass_not_ours);
}

static __always_inline struct sl_service *service_find(const struct sl_flow_key *key)
{
	struct sl_service_key k = { .port = key->dport, .proto = key->proto };

	__builtin_memcpy(k.addr, key->dst, sizeof(k.addr));
	return bpf_map_lookup_elem(&services, &k);
}

static __always_inline __u32 flow_hash(const struct sl_flow_key *key)
{
	__u32 zero = 0;
	struct sl_config *conf = bpf_map_lookup_elem(&config, &zero);
	__u64 hash = conf ? conf->hash_seed : 0, words[5];

	__builtin_memcpy(words, key, sizeof(words));
	for (int i = 0; i < 5; i++) {
		hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull;
		hash ^= hash >> 29;
	}
	return hash >> 32 ^ hash;
}

static __always_inline void meta_set(struct sl_meta *meta, __u16 vm_id, const struct sl_vm *vm, __u16 service,
				     __u32 hash)
{
	meta->kind = SL_META_FLOW;
	meta->vm_id = vm_id;
	meta->layer = vm->layer;
	meta->service = service;
	meta->hash = hash;
}

/* May a flow of this generation stay with this instance? A connection that only begins leaves one that drains. */
static __always_inline int vm_keeps(const struct sl_vm *vm, __u32 gen, __u8 is_syn)
{
	return vm->gen == gen && (vm->state == SL_VM_ACTIVE || (vm->state == SL_VM_DRAINING && !is_syn));
}

/* The instance for a hash, by the service's table. Returns NULL if there is none that is ACTIVE. The table may be
 * older than vms (an instance died a moment ago): then the hash is stirred and another slot tried, the same ones for
 * each packet of the flow. */
static __always_inline struct sl_vm *vm_select(__u32 service, __u32 hash, struct sl_meta *meta)
{
	__u32 zero = 0, stirred = hash;
	void *inner = bpf_map_lookup_elem(&maglev, &service);
	struct sl_maglev *table = inner ? bpf_map_lookup_elem(inner, &zero) : NULL;

	if (!table)
		return NULL;
	for (int i = 0; i < SL_MAGLEV_PROBES; i++) {
		__u64 slot = (__u64)stirred * SL_MAGLEV_SIZE >> 32;
		struct sl_vm *vm;
		__u32 vm_id;

		barrier_var(slot);
		if (slot >= SL_MAGLEV_SIZE)   /* never: for the verifier */
			return NULL;
		vm_id = table->vm[slot];
		vm = bpf_map_lookup_elem(&vms, &vm_id);
		if (vm_id && vm && vm->state == SL_VM_ACTIVE) {
			meta_set(meta, vm_id, vm, service, hash);
			return vm;
		}
		stirred = (stirred ^ stirred >> 15) * 0x2c1b3c6d + 0x297a2d39;
	}
	return NULL;
}

/* The instance that a known flow still belongs to. */
static __always_inline int flow_follow(const struct sl_flow *flow, __u8 is_syn, __u32 hash, struct sl_meta *meta)
{
	__u32 vm_id = flow->vm_id, gen = flow->gen;
	struct sl_vm *vm = bpf_map_lookup_elem(&vms, &vm_id);

	if (!vm || !vm_keeps(vm, gen, is_syn))
		return 0;
	meta_set(meta, vm_id, vm, flow->service, hash);
	return 1;
}

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

static __always_inline __u32 flow_classify(struct sl_cursor *c, struct packet *p, struct sl_meta *meta)
{
	struct sl_flow fresh = {};
	struct sl_service *service;
	struct sl_flow *flow;
	struct sl_vm *vm;
	__u32 hash;

	if (!ports_parse(c, p))
		return refuse(p, VERDICT(drop_truncated));
	hash = flow_hash(&p->key);
	flow = bpf_map_lookup_elem(&flows, &p->key);
	if (flow && flow_follow(flow, p->is_syn, hash, meta)) {
		if (p->ack)
			flow->ack = p->ack;
		return VERDICT(flow_known);
	}
	service = service_find(&p->key);
	if (!service)
		return VERDICT(pass_not_ours);
	vm = vm_select(service->index, hash, meta);
	if (!vm)
		return VERDICT(drop_no_instance);
	fresh.since = (__u32)(bpf_ktime_get_ns() >> SL_TICK_SHIFT);
	fresh.ack = p->ack;
	fresh.gen = vm->gen;
	fresh.vm_id = meta->vm_id;
	fresh.service = meta->service;
	bpf_map_update_elem(&flows, &p->key, &fresh, BPF_ANY);   /* if it fails, the next packet finds the same slot */
	return flow ? VERDICT(flow_moved) : VERDICT(flow_new);
}

static __always_inline struct sl_frag_key frag_key(const struct packet *p)
{
	struct sl_frag_key key = { .id = p->frag_id, .proto = p->is_v6 ? 0 : p->key.proto };

	__builtin_memcpy(key.src, p->key.src, sizeof(key.src));
	__builtin_memcpy(key.dst, p->key.dst, sizeof(key.dst));
	return key;
}

static __always_inline __u32 frag_later_classify(struct packet *p, struct sl_meta *meta)
{
	struct sl_frag_key key = frag_key(p);
	struct sl_frag *frag;
	struct sl_vm *vm;
	__u32 vm_id;

	if (!vip_find(p->key.dst))
		return VERDICT(pass_not_ours);
	frag = bpf_map_lookup_elem(&frags, &key);
	if (!frag)
		return VERDICT(drop_frag_miss);
	vm_id = frag->vm_id;
	vm = bpf_map_lookup_elem(&vms, &vm_id);
	if (!vm || !vm_keeps(vm, frag->gen, 0))
		return VERDICT(drop_frag_miss);
	meta_set(meta, vm_id, vm, frag->service, frag->hash);
	return VERDICT(frag_later);
}

static __always_inline void frag_first_remember(const struct packet *p, const struct sl_meta *meta)
{
	struct sl_frag frag = { .hash = meta->hash, .vm_id = meta->vm_id, .service = meta->service };
	struct sl_frag_key key = frag_key(p);
	__u32 vm_id = meta->vm_id;
	struct sl_vm *vm = bpf_map_lookup_elem(&vms, &vm_id);

	if (!vm)
		return;
	frag.gen = vm->gen;
	bpf_map_update_elem(&frags, &key, &frag, BPF_ANY);
}

static __always_inline __u32 echo_classify(struct packet *p, struct sl_meta *meta)
{
	struct sl_vip *vip = vip_find(p->key.dst);

	if (!vip)
		return VERDICT(pass_not_ours);
	return vm_select(vip->service, flow_hash(&p->key), meta) ? VERDICT(icmp_echo) : VERDICT(drop_no_instance);
}

/* Turn the quoted packet into the key of the client's flow that it answered. False if it is not one of the
 * addressee's, or too short. */
static __always_inline int quote_parse(struct xdp_md *ctx, const struct packet *p, struct sl_flow_key *key)
{
	struct sl_cursor c = cursor_at(ctx, p->off, p->left);
	struct packet quote = {};
	__be16 *ports;

	if ((p->is_v6 ? ipv6_parse(ctx, &c, &quote, 1) : ipv4_parse(ctx, &c, &quote, 1)) != L3_OK)
		return 0;
	if (quote.fragment == FRAGMENT_LATER || !addr_same(quote.key.src, p->key.dst))
		return 0;
	ports = cursor_take(&c, 2 * sizeof(*ports));   /* all that the quote must hold of TCP or UDP (RFC 792) */
	if (!ports || (quote.key.proto != IPPROTO_TCP && quote.key.proto != IPPROTO_UDP))
		return 0;
	__builtin_memcpy(key->src, quote.key.dst, 16);
	__builtin_memcpy(key->dst, quote.key.src, 16);
	key->sport = ports[1];
	key->dport = ports[0];
	key->proto = quote.key.proto;
	return 1;
}

/* An ICMP error quotes the head of a packet that went from us to the client: it follows the client's flow. It makes
 * no entry, since anybody can invent one. Verified alone, as ipv6_extensions_walk() is. */
__attribute__((noinline)) int icmp_error_classify(struct xdp_md *ctx, struct packet *p, struct sl_meta *meta)
{
	struct sl_flow_key key __attribute__((aligned(8))) = {};
	struct sl_service *service;
	struct sl_flow *flow;
	struct sl_vip_key to;
	__u32 hash;

	if (!p || !meta)   /* never: for the verifier */
		return VERDICT(pass_not_ours);
	__builtin_memcpy(to.addr, p->key.dst, sizeof(to.addr));   /* Linux 6.1 looks for nothing in an argument's memory */
	if (!vip_find(to.addr))
		return VERDICT(pass_not_ours);
	if (!quote_parse(ctx, p, &key))
		return VERDICT(drop_icmp_orphan);
	hash = flow_hash(&key);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && flow_follow(flow, 0, hash, meta))
		return VERDICT(icmp_error);
	service = service_find(&key);
	if (!service)
		return VERDICT(drop_icmp_orphan);
	return vm_select(service->index, hash, meta) ? VERDICT(icmp_error) : VERDICT(drop_no_instance);
}

/* Neighbour solicitations for a virtual IP, and advertisements sent to one: answers to what the router asked in its
 * name. */
static __always_inline __u32 nd_classify(struct sl_cursor *c, struct packet *p, __u8 type, struct sl_meta *meta)
{
	__u8 *target = cursor_take(c, 16);
	struct sl_vip_key key;
	struct sl_vip *vip;

	if (!target)
		return refuse(p, VERDICT(drop_truncated));
	__builtin_memcpy(key.addr, target, 16);
	vip = addr_is_mapped(key.addr) ? NULL : vip_find(key.addr);
	if (!vip && type == ICMP6_NEIGHBOUR_ADVERTISEMENT)
		vip = vip_find(p->key.dst);
	if (!vip)
		return VERDICT(pass_not_ours);
	meta->kind = SL_META_ND;
	meta->service = vip->service;
	return VERDICT(nd);
}

/* ARP whose target is a virtual IP: requests for it, and replies to what the router asked in its name. */
static __always_inline __u32 arp_classify(struct sl_cursor *c, struct sl_meta *meta)
{
	struct arp_packet *arp = cursor_take(c, sizeof(*arp));
	struct sl_vip_key key;
	struct sl_vip *vip;

	if (!arp || arp->hw_type != bpf_htons(1) || arp->proto_type != bpf_htons(ETH_P_IP) || arp->hw_len != 6 ||
	    arp->proto_len != 4)
		return VERDICT(pass_not_ours);
	addr_map_v4(key.addr, arp->target_ip);
	vip = vip_find(key.addr);
	if (!vip)
		return VERDICT(pass_not_ours);
	meta->kind = SL_META_ARP;
	meta->service = vip->service;
	return VERDICT(arp);
}

static __always_inline int icmp_is_error(__u8 type, int is_v6)
{
	if (is_v6)
		return type >= ICMP6_DEST_UNREACH && type <= ICMP6_PARAMETER_PROBLEM;
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETER_PROBLEM;
}

static __always_inline __u32 icmp_classify(struct xdp_md *ctx, struct sl_cursor *c, struct packet *p,
					   struct sl_meta *meta)
{
	struct icmp_header *icmp = cursor_take(c, sizeof(*icmp));

	if (!icmp)
		return refuse(p, VERDICT(drop_truncated));
	if (icmp->type == (p->is_v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
		return echo_classify(p, meta);
	if (icmp_is_error(icmp->type, p->is_v6)) {
		p->off = cursor_offset(c);
		p->left = c->left;
		return icmp_error_classify(ctx, p, meta);
	}
	if (p->is_v6 && (icmp->type == ICMP6_NEIGHBOUR_SOLICITATION || icmp->type == ICMP6_NEIGHBOUR_ADVERTISEMENT))
		return nd_classify(c, p, icmp->type, meta);
	return VERDICT(pass_not_ours);
}

static __always_inline __u32 datagram_classify(struct xdp_md *ctx, struct sl_cursor *c, struct packet *p,
					       struct sl_meta *meta)
{
	__u32 verdict = VERDICT(pass_not_ours);

	if (p->fragment == FRAGMENT_LATER)
		return frag_later_classify(p, meta);
	if (p->key.proto == IPPROTO_TCP || p->key.proto == IPPROTO_UDP)
		verdict = flow_classify(c, p, meta);
	else if (p->key.proto == (p->is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		verdict = icmp_classify(ctx, c, p, meta);
	if (p->fragment == FRAGMENT_FIRST && meta->kind == SL_META_FLOW)
		frag_first_remember(p, meta);
	return verdict;
}

static __always_inline __u32 frame_classify(struct xdp_md *ctx, struct sl_meta *meta)
{
	struct sl_cursor c = cursor_at(ctx, 0, DATAGRAM_MAX);
	struct packet p = {};
	__be16 type = ethernet_parse(&c);
	int l3 = L3_ALIEN;

	meta->l3_off = cursor_offset(&c);
	if (type == bpf_htons(ETH_P_ARP))
		return arp_classify(&c, meta);
	if (type == bpf_htons(ETH_P_IP))
		l3 = ipv4_parse(ctx, &c, &p, 0);
	else if (type == bpf_htons(ETH_P_IPV6))
		l3 = ipv6_parse(ctx, &c, &p, 0);
	if (l3 == L3_ALIEN)
		return VERDICT(pass_not_ours);
	if (l3 == L3_BROKEN)
		return refuse(&p, VERDICT(drop_malformed));
	return datagram_classify(ctx, &c, &p, meta);
}

/* ---- the packet's way on ----------------------------------------------------------------------------------------- */

/* Put the verdict in front of the frame. The pointer is moved to an absolute place: metadata that a driver left
 * there does no harm. */
static __always_inline int meta_write(struct xdp_md *ctx, const struct sl_meta *meta)
{
	struct sl_meta *out;

	if (bpf_xdp_adjust_meta(ctx, (int)(ctx->data - ctx->data_meta) - (int)sizeof(*out)))
		return 0;
	out = (void *)(long)ctx->data_meta;
	if ((void *)(out + 1) > (void *)(long)ctx->data)
		return 0;
	*out = *meta;
	return 1;
}

static __always_inline void count(__u32 verdict)
{
	__u32 zero = 0;
	__u64 *counter = bpf_map_lookup_elem(&counters, &zero);

	if (counter && verdict < VERDICT_MAX)
		counter[verdict]++;
}

SEC("xdp.frags")
int sl_classify(struct xdp_md *ctx)
{
	struct sl_meta meta = { .magic = SL_META_MAGIC };
	__u32 verdict = frame_classify(ctx, &meta), queue = ctx->rx_queue_index;

	if (!VERDICT_IS_PASS(verdict) && !VERDICT_IS_DROP(verdict)) {
		if (!bpf_map_lookup_elem(&xsks, &queue))
			verdict = VERDICT(drop_no_socket);
		else if (!meta_write(ctx, &meta))
			verdict = VERDICT(drop_no_headroom);
	}
	count(verdict);
	if (VERDICT_IS_PASS(verdict))
		return XDP_PASS;
	if (VERDICT_IS_DROP(verdict))
		return XDP_DROP;
	return bpf_redirect_map(&xsks, queue, XDP_DROP);   /* the socket may have gone since: fail closed */
}

char _license[] SEC("license") = "Dual BSD/GPL";
