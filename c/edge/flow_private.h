/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of flows share: flow_table.c (identity, pool, end), flow.c (sending, and waiting for room),
 * flow_input.c (receiving, and losing a peer), flow_move.c (flows that outlive their peer). The protocol is in
 * abi/packet.h, the rules for layers in flow.h.
 *
 *   from          to             when
 *   FLOW_OPEN     FLOW_DETACHED  both FINs have passed: the peer may reuse the flow_id, the layer may still have bytes to take
 *   FLOW_OPEN     FLOW_OVER      RESET came or is sent, or the peer died
 *   FLOW_DETACHED FLOW_OVER      the last bytes were taken and over() was called
 *   FLOW_OPEN     FLOW_ORPHAN    the peer is lost and the layer keeps the flow: in no table, in e->orphans
 *   FLOW_ORPHAN   FLOW_OPEN      another peer has it (flow_move.c)
 *   FLOW_ORPHAN   FLOW_OVER      the layer gave it up
 *   never: anything out of FLOW_OVER
 *
 * A flow that is over is in no table and no list but e->dead, and is freed at the end of the turn; only while it owes a
 * RESET (the ring had no room) it stays in link->waiting. */
#ifndef SL_FLOW_PRIVATE_H
#define SL_FLOW_PRIVATE_H

#include "edge/edge.h"

enum {
	FLOWS_MAX = 65536,                    /* flows that one front peer may have open on an edge */
	CREDIT_STEP = SL_FLOW_WINDOW / 4,     /* bytes taken before a WINDOW is worth an entry */
	ROOM_FOR_CONTROL = 8,                 /* entries of a ring that DATA and OPEN leave to WINDOW, FIN and RESET */
};
enum { FLOW_OPEN = 1, FLOW_DETACHED = 2, FLOW_OVER = 3, FLOW_ORPHAN = 4 };
/* in the order in which they are sent, RESET apart: it is sent alone */
enum {
	OWE_RESET = 1, OWE_RESUMED = 2, OWE_WINDOW = 4, OWE_ACK = 8, OWE_REPLAY = 16, OWE_DRAIN = 32, OWE_HAND_OVER = 64,
	OWE_FIN = 128,
};

/* flow_table.c */
struct sl_flow *sl_flow_new(struct sl_link *l, uint64_t request_id);   /* NULL: no memory */
uint32_t sl_flow_index_take(struct sl_edge *e, struct sl_flow *f);     /* front side: the flow_id of a new flow */
bool sl_flow_index_room(struct sl_link *l, uint32_t i);                /* back side: by_index reaches i */
struct sl_flow *sl_flow_find(const struct sl_link *l, uint32_t flow_id);
void sl_flow_id_release(struct sl_flow *f);   /* the flow_id may be used again by the front peer from now on */
void sl_flow_unmake(struct sl_flow *f);       /* it was never opened */
void sl_flow_bury(struct sl_flow *f);         /* out of everything: freed at the end of the turn */

/* flow.c */
void sl_flow_owe(struct sl_flow *f, uint8_t what);   /* sends it, now or when there is room */
int sl_entry_send(struct sl_flow *f, struct sl_request_packet *p, const struct sl_buf *buf);   /* fills in whose it is */
void sl_flow_wait(struct sl_flow *f);                /* sl_flows_serve looks at it */
int sl_flow_open_on(struct sl_link *l, struct sl_flow *f, const void *head, uint32_t head_len, const void *msg, uint32_t len,
		    uint32_t flags);   /* sends the OPEN of f, which has no flow_id yet: 0 or -EAGAIN */

/* flow_move.c */
/* Whether f is a front's, and its back has said all: that stands, whatever becomes of the back. */
static inline bool sl_flow_heard_all(const struct sl_flow *f)
{
	return f->edge->side == SL_FRONT && f->rx_fin;
}
bool sl_flow_orphan(struct sl_flow *f);              /* the peer is lost: true if the flow goes on without it */
bool sl_flow_replay(struct sl_flow *f);              /* false: no room */
bool sl_flow_resumed_send(struct sl_flow *f);        /* false: no room */
void sl_flow_move_input(struct sl_flow *f, const struct sl_request_packet *p);   /* ACK, STATE, RESUMED */
bool sl_flow_kept_add(struct sl_flow *f, const struct sl_buf *buf, uint32_t len);

/* flow_input.c */
/* Both directions may be closed: then the flow_id is free for the next flow, and over() comes at the end of the turn,
 * never from within a call that the layer itself makes. */
void sl_flow_over_if_both_fins(struct sl_flow *f);

#endif
