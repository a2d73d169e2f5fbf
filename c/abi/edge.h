/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* Edge: the shared memory between two adjacent layers. Everything is an offset from the region's start; there are no
 * pointers.
 *
 *   0            struct sl_region                          one page, constant after creation
 *   peers_off    struct sl_peer    [nb_front + nb_back]    front peers first: peer = slot, or nb_front + slot for the back side
 *   rings_off    struct sl_ring + entries + completions    one for each ordered pair: ring_off(front f -> back b) = rings_off +
 *                                                          ((f * nb_back + b) * 2) * ring_len; back -> front is the next one
 *   arenas_off   arena             [nb_front + nb_back]    payload slots: nb_small of small_len, then nb_big of big_len bytes
 *
 * region_len = align(arenas_off + (nb_front + nb_back) * arena_len, page) with
 *   peers_off  = 4096
 *   rings_off  = peers_off + (nb_front + nb_back) * 128
 *   ring_len   = 128 + ring_cap * (32 + 8)
 *   arenas_off = align(rings_off + 2 * nb_front * nb_back * ring_len, 4096)
 *   arena_len  = nb_small * small_len + nb_big * big_len
 *
 * Who attaches copies the header once, recomputes every offset from the counts and refuses a header that differs. The
 * geometry of an attached edge never changes: another size is another region.
 *
 * An entry says itself that it is there: its last word names the sender's incarnation and the lap of the ring. The
 * receiver looks at the next entry's and at nothing else, so a message moves one cache line. Completions say it in the
 * same way.
 *
 * Ownership of a slot is derived from the entries and stored nowhere else:
 *
 *   entry number n of a ring               is               its payload belongs to
 *   not there                              free             the sender
 *   there, behind one that is not          free             the sender: the receiver stops before it
 *   there, cons <= n                       pending          nobody: the receiver may take it
 *   n < cons, not completed                in progress      the receiver (reads only)
 *   completed                              completed/error  the sender again */
#ifndef SL_ABI_EDGE_H
#define SL_ABI_EDGE_H

#include "packet.h"

enum {
	SL_REGION_MAGIC = 0x534c4731,  /* "SLG1" */
	SL_SIDE_MAX = 64,              /* peers on one side of an edge */
	SL_RING_CAP_MAX = 4096,        /* entries, a power of two */
	SL_RING_CAP = 256,             /* default */
	SL_SMALL_LEN = 2048,           /* bytes of a small slot: a frame, a request head */
	SL_BIG_LEN = 18432,            /* bytes of a big slot: a TLS record (16384 + 256 + 5, RFC 8446 section 5.2), in whole small slots */
	SL_NB_SMALL = 512,             /* default small slots of one peer */
	SL_NB_BIG = 160,               /* default big slots of one peer */
};

enum sl_side {
	SL_FRONT = 0,   /* nearer to the client: opens flows */
	SL_BACK = 1,    /* nearer to the application */
};

/* Writer: the manager, magic last. Readers: all, once, at attach. */
struct sl_region {
	__u32 magic;         /* SL_REGION_MAGIC */
	__u32 abi_version;   /* SL_ABI_VERSION */
	__u32 edge_id;       /* front layer << 8 | back layer */
	__u32 epoch;         /* of the region: a new one when it is made anew */
	__u64 region_len;    /* bytes, < 4 GiB */
	__u64 peers_off;
	__u64 rings_off;
	__u64 ring_len;      /* bytes of one ring with its entries and completions */
	__u64 arenas_off;
	__u64 arena_len;
	__u32 nb_front;      /* peer slots on each side, 1 ... SL_SIDE_MAX */
	__u32 nb_back;
	__u32 ring_cap;
	__u32 small_len;
	__u32 nb_small;
	__u32 big_len;
	__u32 nb_big;
	__u8 front_layer;    /* enum sl_layer_id */
	__u8 back_layer;
	__u8 pad[2];
};
_Static_assert(sizeof(struct sl_region) == 96, "no implicit padding");

enum sl_sleep {
	SL_SLEEP_ENTRIES = 1,      /* ring my doorbell after publishing entries for me */
	SL_SLEEP_COMPLETIONS = 2,  /* and after completing mine: I wait for a slot or for ring space */
};

/* Writer: the peer itself. Readers: the peers of the other side (as hints only: a lie harms the liar's load alone), the
 * manager. */
struct sl_peer {
	/* line 0: written at each change between awake and asleep, read by senders after each publish */
	__u32 sleeping;      /* enum sl_sleep: 0 awake, else what it wants to be woken for */
	__u32 incarnation;   /* of the present owner of this slot */
	__u8 pad0[56];
	/* line 1: written once per turn of the loop at most */
	__u64 heartbeat_ns;
	__u32 depth;         /* load as select_best_vm compares it: open flows; what is queued each sender knows itself */
	__u32 load;          /* busy share of the last interval, 0 ... 1000 */
	__u16 vm_id;
	__u8 state;          /* enum sl_vm_state */
	__u8 pad1[45];
};
_Static_assert(sizeof(struct sl_peer) == 128, "two cache lines");

/* One direction between one front and one back peer. Numbers run freely modulo 2^32; entry n lies at n & (ring_cap - 1)
 * and has lap 1 or 2 in turn, completions likewise. A sender has at most ring_cap entries uncompleted, so neither array
 * can overflow, and what lies in a place is this lap's, the last lap's, or nothing.
 *
 * Before its pairing begins, each side clears the last words of what it will write (entries, or completions), then sets
 * its pair. Who reads waits for the pair once; from then on both lines stay with their writers. */
struct sl_ring {
	/* line 0. Writer: sender. Reader: receiver */
	__u32 prod;          /* entries published: a hint, for VMStatus */
	__u32 pad0;
	__u64 prod_pair;     /* sender's incarnation << 32 | receiver's: the pairing for which the entries count; else the ring is not up */
	__u8 pad1[48];
	/* line 1. Writer: receiver. Reader: sender, when the receiver has died */
	__u32 cons;          /* entries taken out: tells pending from in progress */
	__u32 pad2;
	__u64 cons_pair;     /* as prod_pair, for cons and the completions */
	__u8 pad3[48];
	/* followed by struct sl_request_packet entries[ring_cap] and struct sl_completion completions[ring_cap] */
};
_Static_assert(sizeof(struct sl_ring) == 128, "two cache lines");

/* A run of entries that ended with the same status. Writer: receiver. Reader: sender, which checks that each was
 * uncompleted. */
struct sl_completion {
	__u32 seq;       /* number of the first entry */
	__u16 count;     /* 1 ... ring_cap */
	__u8 status;     /* enum sl_request_status: SL_COMPLETED or an SL_ERROR */
	__u8 lap;        /* as an entry's */
};
_Static_assert(sizeof(struct sl_completion) == 8, "eight to a cache line");

#endif
