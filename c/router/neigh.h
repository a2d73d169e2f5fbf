/* SPDX-License-Identifier: Apache-2.0 */
/* The neighbour table: link-layer addresses of hosts and gateways next to us; ARP and neighbour discovery on behalf of
 * the virtual IPs.
 *
 *   state    means                              leaves it by
 *   FREE     slot unused                        a frame for this neighbour -> ASKING; its own request -> KNOWN
 *   ASKING   no address; frames wait;           its answer or request -> KNOWN;
 *            everybody is asked                 SL_NEIGH_TRIES unanswered -> FREE
 *   KNOWN    address good                       used SL_NEIGH_FRESH_NS after the last sign of life -> PROBING;
 *                                               unused and silent for SL_NEIGH_IDLE_NS -> FREE
 *   PROBING  address in use, and its owner      its answer or request -> KNOWN;
 *            asked whether it is still right    SL_NEIGH_TRIES unanswered -> FREE
 *   never: an answer that was not asked for changes anything
 *
 * The table can not be filled from far away: only addresses that are on-link (or gateways) get in. It can not be filled
 * from near either: its size is fixed, a full bucket gives up the entry that we never sent to, then the one longest
 * unused, never a gateway; the bucket is chosen by a secret hash. How many are ASKING and how many frames wait is
 * bounded.
 *
 * VLAN: an entry remembers the tags that its neighbour's ARP or ND frame carried, frames to it get the same. An unknown
 * neighbour is asked without tag: one that lives behind a tag becomes known when it asks for a virtual IP, as it must
 * before it can send. */
#ifndef SL_NEIGH_H
#define SL_NEIGH_H

#include "router/count.h"
#include "router/net.h"
#include "router/ports/port.h"
#include "router/wire.h"

enum {
	SL_NEIGH_CAP = 1024,
	SL_NEIGH_WAYS = 8,             /* entries in a bucket */
	SL_NEIGH_ASKING_MAX = 64,
	SL_NEIGH_WAIT_MAX = 128,       /* waiting frames, of all neighbours */
	SL_NEIGH_WAIT_EACH = 4,        /* of one neighbour */
	SL_NEIGH_TRIES = 3,
};

#define SL_NEIGH_RETRY_NS 1000000000ull
#define SL_NEIGH_FRESH_NS 30000000000ull
#define SL_NEIGH_IDLE_NS 600000000000ull
#define SL_NEIGH_SWEEP_NS 60000000000ull

enum sl_neigh_state { SL_NEIGH_FREE = 0, SL_NEIGH_ASKING, SL_NEIGH_KNOWN, SL_NEIGH_PROBING };

struct sl_neigh_wait;

struct sl_neigh {
	struct sl_addr addr;
	struct sl_addr vip;            /* in whose name it is asked */
	struct sl_tags tags;
	uint8_t mac[6];
	uint8_t state;                 /* enum sl_neigh_state */
	uint8_t tries;                 /* questions since it is ASKING or PROBING */
	uint8_t nb_wait;
	struct sl_neigh_wait *wait;    /* oldest first */
	uint64_t alive_ns;             /* last sign of life; of an ASKING entry, when it was made */
	uint64_t used_ns;              /* last frame sent to it; 0: never */
	uint64_t retry_ns;             /* when to ask again */
};

/* A frame that waits for its neighbour. */
struct sl_neigh_wait {
	struct sl_neigh_wait *next;
	uint32_t len;
	uint16_t vm_id;
	uint8_t data[SL_VLAN_MAX + SL_FRAME_MAX];   /* the frame starts at SL_VLAN_MAX */
};

struct sl_neighs {
	const struct sl_net *net;
	struct sl_port *nic;           /* where questions, answers and released frames go */
	struct sl_count *count;
	uint8_t mac[6];
	uint64_t seed[2];
	uint32_t nb_used, nb_asking;
	uint64_t tick_ns;              /* when sl_neighs_tick is due; 0: never */
	struct sl_neigh_wait *wait_free;
	struct sl_neigh neigh[SL_NEIGH_CAP];
	struct sl_neigh_wait wait[SL_NEIGH_WAIT_MAX];
};

/* t is big: not for the stack. net, nic and count live longer than t; seed is random. */
void sl_neighs_init(struct sl_neighs *t, const struct sl_net *net, struct sl_port *nic, struct sl_count *count,
		    const uint8_t mac[6], const uint64_t seed[2]);

/* An ARP or ND message from the NIC: answers a question for a virtual IP, learns from it, takes answers. Returns 0, or
 * -EPERM: it is about no virtual IP, somebody else claims one, or nobody asked for this answer; then it changed
 * nothing. */
int sl_neighs_input(struct sl_neighs *t, const struct sl_wire_msg *msg, uint64_t now_ns);

/* The entry of hop, for a frame whose source is vip, of the same family. Asks if need be. NULL: there is no entry and
 * none can be made now. Good until the next call of any function here. */
struct sl_neigh *sl_neighs_use(struct sl_neighs *t, const struct sl_addr *hop, const struct sl_addr *vip,
			       uint64_t now_ns);

/* Whether e's link-layer address is there. */
static inline bool sl_neigh_is_ready(const struct sl_neigh *e)
{
	return e->state == SL_NEIGH_KNOWN || e->state == SL_NEIGH_PROBING;
}

/* Writes the Ethernet header (and tags) for e, which is ready. frame has SL_VLAN_MAX bytes of room before it and keeps
 * its type field.
 * Returns the new start; the frame grows by e->tags.len bytes. */
uint8_t *sl_neigh_address(const struct sl_neighs *t, const struct sl_neigh *e, uint8_t *frame);

/* Keeps a copy of a frame of instance vm_id until e is ready. 0, or -ENOBUFS. The frame is later counted by what
 * becomes of it. */
int sl_neighs_wait(struct sl_neighs *t, struct sl_neigh *e, const uint8_t *frame, uint32_t len, uint16_t vm_id);

/* Asks again, gives up, ages. Call when t->tick_ns has come. */
void sl_neighs_tick(struct sl_neighs *t, uint64_t now_ns);

#endif
