/* SPDX-License-Identifier: Apache-2.0 */
/* An edge as one instance has it attached: rings, arena, routes. The layout is in abi/edge.h, flows on top in
 * edge/flow.h.
 *
 * One thread owns a struct sl_edge. Order of use in each turn of the loop:
 *   sl_edge_poll     takes entries and completions in, calls back
 *   ...              route_request for whatever is to be sent
 *   sl_signal_vm     publishes what was sent and completed, rings those who sleep
 *
 * A link is one peer across the edge: the ring towards it and the ring from it. Links come and go by sl_edge_routes_set
 * and sl_edge_peer_gone, which give their slots back and end their flows. */
#ifndef SL_EDGE_H
#define SL_EDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "abi/control.h"
#include "edge/flow.h"
#include "edge/region.h"

enum { SL_BURST = 32 };   /* entries taken from one link in one turn: bounds the work that one peer can cause */

/* A sent entry until it is completed: offset of its payload slot (0: none; slots lie on cache lines) | SL_SENT_OPEN;
 * then 0 */
enum { SL_SENT_OPEN = 1 };

struct sl_tx {
	struct sl_ring *ring;
	struct sl_request_packet *entries;
	const struct sl_completion *completions;
	uint32_t *sent;           /* by entry number & mask */
	__u64 head;               /* last word of entry number `published`: its storing publishes that and all behind it */
	uint32_t prod;            /* next entry to write */
	uint32_t published;
	uint32_t oldest;          /* first entry not completed */
	uint32_t cprod;           /* completions taken */
	bool up;                  /* the peer has set its half up for this pairing */
};

struct sl_rx {
	struct sl_ring *ring;
	const struct sl_request_packet *entries;
	struct sl_completion *completions;
	uint32_t cons;
	uint32_t cprod;           /* next completion to write */
	uint32_t ctold;           /* those after whose writing the sender was rung if it slept */
	struct sl_completion run; /* being gathered; count 0 = none */
	bool up;
};

struct sl_link {
	struct sl_edge *edge;
	uint32_t incarnation;     /* of the peer; 0 = no peer in this slot */
	uint32_t lost;            /* of the last one that was dropped: a route page written before it left may name it once more */
	uint16_t vm_id;
	uint16_t slot;
	uint16_t weight;
	uint8_t state;            /* enum sl_vm_state, as routed by the manager */
	bool quarantined;
	int doorbell;             /* eventfd of the peer, -1: not announced */
	struct sl_peer *peer;
	struct sl_tx tx;
	struct sl_rx rx;
	struct sl_list flows;
	struct sl_list waiting;   /* flows that wait for a slot or ring space */
	struct sl_flow **by_index;   /* back side: flows of this front peer by index of their flow_id */
	uint32_t by_index_len;
};

struct sl_edge_ops {
	void (*count)(struct sl_edge *e, enum sl_counter c);   /* something was turned away */
	uint64_t (*request_id)(struct sl_edge *e);             /* a fresh one */
	/* A peer was quarantined, which was counted already. NULL: nobody asks. */
	void (*shut_out)(struct sl_edge *e, uint16_t vm_id, enum sl_counter why);
	/* Rings a peer in place of a write to its eventfd; true if it was rung. NULL: eventfds. For a guest, whose
	 * doorbells are a device's. */
	bool (*ring)(struct sl_edge *e, uint16_t vm_id);
};

/* select_best_vm draws from it: Vose's alias method, so a draw costs the same for any number of receivers */
struct sl_alias {
	uint32_t nb;
	uint32_t cut[SL_SIDE_MAX];        /* of 2^32: keep the drawn one below, take its alias above */
	uint8_t alias[SL_SIDE_MAX];
	struct sl_link *link[SL_SIDE_MAX];
};

struct sl_edge {
	void *user;                       /* of the owner (the instance) */
	const struct sl_edge_ops *ops;
	const struct sl_flow_ops *flow_ops;
	uint8_t *base;
	uint64_t map_len;                 /* bytes mapped: the region's length */
	struct sl_region g;               /* private copy of the geometry: the region's is never read again */
	uint8_t side;
	uint8_t layer;                    /* own */
	uint8_t peer_layer;
	uint16_t slot;
	uint16_t vm_id;
	uint32_t incarnation;
	uint32_t nb_links;                /* slots across */
	struct sl_link *links;            /* by slot across */
	uint32_t nb_up;
	struct sl_link *up[SL_SIDE_MAX];  /* those with a peer */
	struct sl_peer *self;
	uint32_t arena_off;
	uint16_t *free_small, *free_big;  /* stacks */
	uint32_t nb_free_small, nb_free_big;
	uint64_t rng;
	struct sl_alias alias;
	uint32_t routes_epoch;
	/* flows */
	struct sl_flow **table;           /* front side: by index of flow_id */
	uint32_t *generation;
	uint32_t *free_index;
	uint32_t table_len, nb_free_index;
	struct sl_list done;              /* both sides finished: over() is due at the end of the turn */
	struct sl_list dead;              /* over in this turn: freed at its end */
	struct sl_list orphans;           /* that move, and have no link for now */
	struct sl_list pool;
	uint8_t *scratch;                 /* big_len bytes: private copy of an OPEN's payload */
	bool draining;                    /* front side: every flow is asked to end soon */
};

/* Bytes of a memfd's or a device's memory, or -errno. */
int64_t sl_memory_len(int fd);

/* Maps fd and takes the seat. fd must be sealed against shrinking (or be a device's memory: sealed=false skips
 * that check); it may be closed afterwards. Resets the own half of all rings. Returns 0 and *ret, -EAGAIN not formatted
 * yet, -EPERM not sealed, -EPROTO ABI version, -EINVAL geometry or seat, -ENOMEM, or mmap's. */
int sl_edge_attach(int fd, bool sealed, const struct sl_edge_seat *seat, uint8_t layer, uint16_t vm_id,
		   const struct sl_edge_ops *ops, const struct sl_flow_ops *flow_ops, void *user, struct sl_edge **ret);
/* Ends all flows without a callback and unmaps. NULL is allowed. */
void sl_edge_detach(struct sl_edge *e);

/* Takes over a route page (private copy, trusted): links that are not in it or whose incarnation changed are dropped,
 * new ones are set up, weights refreshed. doorbell(user, vm_id) gives a peer's eventfd or -1. */
void sl_edge_routes_set(struct sl_edge *e, const struct sl_route_page *page, int (*doorbell)(void *user, uint16_t vm_id));
void sl_edge_doorbell_set(struct sl_edge *e, uint16_t vm_id, int fd);

/* The peer is gone: flows on it are over (SL_ERROR_PEER_GONE), its slots come back. Drops nothing if vm_id has no
 * link. */
void sl_edge_peer_gone(struct sl_edge *e, uint16_t vm_id);

/* Asks the back to end all flows soon, those that are opened later too. Front side only. */
void sl_edge_drain(struct sl_edge *e);

/* Takes in up to SL_BURST entries of each link and all completions, and serves the flows that wait. Returns entries +
 * completions. */
uint32_t sl_edge_poll(struct sl_edge *e);
/* True if sl_edge_poll would find something: the recheck between announcing sleep and sleeping. */
bool sl_edge_pending(const struct sl_edge *e);
/* Frees what ended in this turn; publishes and rings (sl_signal_vm). Call once at the end of each turn. */
void sl_edge_turn_end(struct sl_edge *e);
/* Announces sleep (true) or being awake. After true: full fence inside; call sl_edge_pending before really sleeping. */
void sl_edge_sleep_set(struct sl_edge *e, bool asleep);

/* --- one level below flows: what they, tests and benchmarks are made of --- */

/* The active receiver that is, for its weight, less loaded of two drawn by weight, or NULL. ≤ 15 ns for any number of
 * receivers. */
struct sl_link *sl_select_best_vm(struct sl_edge *e);

/* Writes one entry into the ring towards the link's peer: op, flags, status, length, flow_id, request_id of *p are
 * taken, the rest is filled in. buf: its payload slot (given back by the completion), or NULL. Returns the entry's
 * number in *seq (may be NULL), or -EAGAIN: ring_cap entries are uncompleted. Published by sl_signal_vm. */
int sl_route_request(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *buf, uint32_t *seq);

/* The same for nb entries at once; bufs[i] is the slot of p[i], or bufs is NULL. Returns how many were written: those
 * for which there was room. */
uint32_t sl_route_burst(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *bufs, uint32_t nb);

/* Publishes entries and completions of all links, then rings the doorbells of those who sleep. Returns the number of
 * doorbells rung. */
uint32_t sl_signal_vm(struct sl_edge *e);

/* Copies up to max entries out, checked. Returns how many; the first has number *seq. A bad entry quarantines the link:
 * those before it are still returned. */
uint32_t sl_link_recv(struct sl_link *l, struct sl_request_packet *p, uint32_t max, uint32_t *seq);
/* Payload of a received entry: hostile, may change at any time. */
static inline const uint8_t *sl_payload(const struct sl_edge *e, const struct sl_request_packet *p)
{
	return e->base + p->offset;
}
/* Completes received entries seq ... seq + count - 1, in any order; each exactly once. */
void sl_link_complete(struct sl_link *l, uint32_t seq, uint32_t count, enum sl_request_status status);
/* Takes completions in, frees their slots. Returns how many entries were completed. */
uint32_t sl_link_reap(struct sl_link *l);
/* Whether sl_link_recv, sl_link_reap would find something. */
bool sl_link_has_entries(struct sl_link *l);
bool sl_link_has_completions(struct sl_link *l);
/* How many entries wait, as the sender says: 0 ... ring_cap. For statistics only. */
uint32_t sl_link_waiting(const struct sl_link *l);
/* Entries that may be sent now. */
static inline uint32_t sl_link_room(const struct sl_link *l)
{
	return l->edge->g.ring_cap - (l->tx.prod - l->tx.oldest);
}

/* Gets a slot of at least len bytes (or the biggest there is). Returns 0 or -EAGAIN. */
int sl_buf_alloc(struct sl_edge *e, uint32_t len, struct sl_buf *buf);

/* The peer broke the contract: count it under why, shut it out, end its flows. */
void sl_link_quarantine(struct sl_link *l, enum sl_counter why);

/* Rings the link's peer, whether it sleeps or not. True if it was rung now. */
bool sl_link_ring(const struct sl_link *l);

/* flow.c, called by edge.c and ring.c */
int sl_flows_init(struct sl_edge *e);
void sl_flows_free(struct sl_edge *e);
void sl_flows_link_lost(struct sl_link *l, enum sl_request_status status);
void sl_process_request(struct sl_link *l, const struct sl_request_packet *p);
void sl_flows_serve(struct sl_link *l);
void sl_flows_finish(struct sl_edge *e);
void sl_flows_turn_end(struct sl_edge *e);

#endif
