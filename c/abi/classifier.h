/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* What the classifier (XDP), the manager and the router share: the verdict in front of each frame, keys and values
 * of the BPF maps.
 *
 * The maps are pinned below the run-time folder in bpf/v<SL_ABI_VERSION>/, under these names:
 *
 *   config    array[1]                 struct sl_config                             seed, epoch: of the swarm
 *   services  hash                     struct sl_service_key -> struct sl_service   what is ours
 *   vips      hash                     struct sl_vip_key -> struct sl_vip           addresses of services
 *   vms       array[SL_VM_MAX]         VMID -> struct sl_vm                         RoutingTable, every layer
 *   maglev    array[SL_SERVICE_MAX]    service -> map of one struct sl_maglev       new flows
 *   flows     LRU hash                 struct sl_flow_key -> struct sl_flow         known flows
 *   frags     LRU hash                 struct sl_frag_key -> struct sl_frag         first fragments seen
 *   counters  per-CPU array[1]         struct sl_counters                           one per verdict
 *   xsks      XSKMAP[SL_QUEUES_MAX]    receive queue -> AF_XDP socket               written by the router
 *   user_flows  array[SL_FLOW_BUCKETS]   struct sl_lru_bucket                       known flows, in user space
 *   link      (not a map)              the attachment of the program to the NIC
 *
 * Writers: the manager writes config ... maglev; the classifier flows, frags and counters; the router xsks.
 *
 * Where the NIC belongs to DPDK there is no XDP: the router runs the same source in user space (c/classifier). It maps
 * config, vms and the tables in maglev, copies services and vips whenever config's generation changes, writes counters
 * once a second, and keeps user_flows, which is there only then, in place of flows. */
#ifndef SL_ABI_CLASSIFIER_H
#define SL_ABI_CLASSIFIER_H

#include "base.h"

enum {
	SL_META_MAGIC = 0x534c4d31,   /* "SLM1" */

	/* Slots of a Maglev table: the largest prime below 2^16. Prime, because each instance walks the table with
	 * its own step and must meet every slot; below 2^16, so that a 32-bit hash becomes a slot by one
	 * multiplication ((hash * size) >> 32), not a division. */
	SL_MAGLEV_SIZE = 65521,
	SL_MAGLEV_PROBES = 16,        /* slots tried to find an instance that is ACTIVE: the table may lag behind vms */

	SL_QUEUES_MAX = 64,           /* receive queues of the NIC */
	SL_SERVICE_KEYS_MAX = 256,    /* address, port, protocol */
	SL_VIP_MAX = 256,
	SL_FLOW_MAX = 65536,          /* known flows; the least recently used one makes room */
	SL_FRAG_MAX = 4096,

	SL_TICK_SHIFT = 24,           /* ticks of flows: CLOCK_MONOTONIC in units of 2^24 ns, 17 ms; they wrap after 2 years */
	SL_LRU_WAYS = 8,              /* places of one bucket, in user space */
	SL_FLOW_BUCKETS = 16384,      /* twice SL_FLOW_MAX places: buckets do not fill evenly */
	SL_FRAG_BUCKETS = 1024,
};

/* why a frame was handed to the router */
enum sl_meta_kind {
	SL_META_FLOW = 1,   /* for the instance vm_id */
	SL_META_ARP = 2,    /* ARP about a virtual IP: for the router itself */
	SL_META_ND = 3,     /* ICMPv6 neighbour discovery about a virtual IP: for the router itself */
};

/* The verdict: XDP metadata, the 16 bytes directly before the frame. Writer: classifier. Reader: router, which
 * clears magic after reading, because a stale chunk still shows the former frame's. */
struct sl_meta {
	__u32 magic;      /* SL_META_MAGIC */
	__u32 hash;       /* flow hash, the same in every packet of a flow and for its ICMP errors */
	__u16 vm_id;      /* instance of the first layer; 0 unless kind is SL_META_FLOW */
	__u16 service;    /* index of the service, 0 ... SL_SERVICE_MAX - 1 */
	__u16 l3_off;     /* bytes from the frame's start to its IP (or ARP) header */
	__u8 layer;       /* enum sl_layer_id of vm_id */
	__u8 kind;        /* enum sl_meta_kind */
};
_Static_assert(sizeof(struct sl_meta) == 16, "XDP metadata: a multiple of 4, found by subtracting its size");

/* Writer: manager. hash_seed stays what it is as long as the pins live: another seed would move every flow without
 * an entry. */
struct sl_config {
	__u64 hash_seed;    /* random: a client can not choose its instance in advance */
	__u32 epoch;        /* of the RoutingTable that vms and maglev show */
	__u32 nb_queues;    /* receive queues that the router serves */
	__u32 generation;   /* another number after each change of services or vips, written after it */
	__u32 pad;
};
_Static_assert(sizeof(struct sl_config) == 24, "mapped: a multiple of 8");

/* Addresses are IPv6 or IPv4-mapped (::ffff:a.b.c.d), as on the wire. An IPv6 packet *to* a mapped address is never
 * ours. */
struct sl_service_key {
	__u8 addr[16];
	__be16 port;
	__u8 proto;         /* IPPROTO_TCP, IPPROTO_UDP */
	__u8 pad;
};
_Static_assert(sizeof(struct sl_service_key) == 20, "a key has no hole: it is compared as bytes");

struct sl_service {
	__u16 index;               /* 0 ... SL_SERVICE_MAX - 1; several keys may share one (IPv4 and IPv6) */
	__u8 layer;                /* enum sl_layer_id of the chain's first layer */
	__u8 pad;
	char name[SL_NAME_LEN];    /* zero-terminated; char, so that bpftool prints a word */
};
_Static_assert(sizeof(struct sl_service) == 20, "no implicit padding");

struct sl_vip_key {
	__u8 addr[16];
};
_Static_assert(sizeof(struct sl_vip_key) == 16, "no implicit padding");

struct sl_vip {
	__u16 service;      /* answers echo requests, names ARP and ND frames: the lowest index on this address */
	__u16 pad;
};
_Static_assert(sizeof(struct sl_vip) == 4, "no implicit padding");

/* One instance, of whatever layer. The classifier reads gen, state and layer; the rest is for people and tools.
 * One write of state takes an instance out of the traffic at once, before any table is rebuilt. */
struct sl_vm {
	__u32 gen;                 /* of this VMID: changes with its owner and its layer, which ends its flows */
	__u8 state;                /* enum sl_vm_state: ACTIVE gets new flows, ACTIVE and DRAINING keep theirs */
	__u8 layer;                /* enum sl_layer_id of its first layer */
	__u16 load;                /* 0 ... 1000, as in VMStatus */
	__u32 layers;              /* bit 1 << enum sl_layer_id for each layer it runs */
	__u16 weight;              /* in the tables, 0 = none */
	__u16 capacity;            /* 0 ... 1000, available_capacity of VMStatus */
	__u64 hardware_affinity;   /* bits, as in VMStatus */
};
_Static_assert(sizeof(struct sl_vm) == 24, "no implicit padding");

/* Maglev table of one service: which instance gets a new flow. Never changed once it can be seen: filled, then
 * swapped in whole. */
struct sl_maglev {
	__u16 vm[SL_MAGLEV_SIZE];  /* VMID, 0 = none */
};
_Static_assert(sizeof(struct sl_maglev) == 131042, "dense");

/* A flow as the client's packets show it: src is the client, dst the virtual IP. */
struct sl_flow_key {
	__u8 src[16];
	__u8 dst[16];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct sl_flow_key) == 40, "five words of 8 bytes: hashed as such");

/* Holds as long as vms[vm_id].gen == gen and its state is ACTIVE or DRAINING; else it is as if it were not there. */
struct sl_flow {
	__u32 since;        /* made at, in ticks */
	__be32 ack;         /* TCP: what the client expects next, by its last segment; whoever must end the connection for an
	                     * instance that no longer can needs it */
	__u32 gen;
	__u16 vm_id;
	__u16 service;
};
_Static_assert(sizeof(struct sl_flow) == 16, "no implicit padding");

struct sl_frag_key {
	__u8 src[16];
	__u8 dst[16];
	__be32 id;          /* identification; IPv4's 16 bits in the first two bytes */
	__u8 proto;         /* of IPv4; 0 for IPv6, where fragments need not agree on it (RFC 8200 section 4.5) */
	__u8 pad[3];
};
_Static_assert(sizeof(struct sl_frag_key) == 40, "no implicit padding");

/* Where the first fragment went: the later ones carry no port. */
struct sl_frag {
	__u32 hash;
	__u32 gen;
	__u16 vm_id;
	__u16 service;
};
_Static_assert(sizeof(struct sl_frag) == 12, "no implicit padding");

/* Known flows in user space, where an LRU map can not be mapped: eight places for the keys of one hash, of which the
 * least recently used makes room. Writer: the router; the next router goes on with it. */
struct sl_lru_place {
	__u64 key[5];       /* struct sl_flow_key */
	__u64 value[2];     /* struct sl_flow */
};
_Static_assert(sizeof(struct sl_lru_place) == 56, "no implicit padding");

struct sl_lru_bucket {
	__u32 tag[8];       /* of the key's hash; 0: the place is empty */
	__u32 used[8];      /* when it was last looked up, in ticks */
	struct sl_lru_place place[8];
};
_Static_assert(sizeof(struct sl_lru_bucket) == 512, "whole cache lines, and a power of two");

/* Packets by verdict: every packet counts exactly once. A name's first word is what happens to the packet: pass_
 * goes to the kernel unchanged (XDP_PASS), drop_ ends here (XDP_DROP), all others go to the router (XDP_REDIRECT)
 * with struct sl_meta in front. The order is part of the contract: pass_, then drop_, then the rest. */
struct sl_counters {
	__u64 pass_not_ours;         /* of no service; also whatever is too broken to say whose it is */
	__u64 drop_malformed;        /* for a virtual IP: contradicting lengths, too many extension headers */
	__u64 drop_truncated;        /* for a virtual IP: ends before its TCP, UDP or ICMP header does */
	__u64 drop_frag_miss;        /* for a virtual IP: later fragment whose first one was not seen */
	__u64 drop_icmp_orphan;      /* ICMP error to a virtual IP that quotes no flow of a service */
	__u64 drop_no_instance;      /* ours, and no instance is ACTIVE */
	__u64 drop_no_socket;        /* ours, but no router on this queue: the kernel must not answer for us */
	__u64 drop_no_headroom;      /* ours, and the driver leaves no room for metadata */
	__u64 flow_new;              /* first packet of a flow: instance by Maglev, entry made */
	__u64 flow_known;            /* of a known flow */
	__u64 flow_moved;            /* known flow whose instance is gone (SYN: or drains): another by Maglev */
	__u64 frag_later;            /* later fragment that follows its first; the first counts as what it carries */
	__u64 icmp_echo;             /* echo request to a virtual IP */
	__u64 icmp_error;            /* ICMP error to the instance of the flow it quotes */
	__u64 arp;
	__u64 nd;
};
_Static_assert(sizeof(struct sl_counters) == 128, "no implicit padding");

#endif
