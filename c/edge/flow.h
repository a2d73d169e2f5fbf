/* SPDX-License-Identifier: Apache-2.0 */
/* Flows over an edge: ordered bytes in both directions between one front and one back instance, with backpressure.
 * The protocol is in abi/packet.h; this is what layers are written against.
 *
 * A layer gives each edge one struct sl_flow_ops. All callbacks run in the loop's thread, in the order of the entries.
 *
 *  sending                                                  receiving
 *  room = sl_flow_reserve(f, want, &buf)   0: blocked,      data(f, p, len) -> bytes taken. What it does not take is kept
 *         write up to room bytes at buf.data;                 in private memory (at most SL_FLOW_WINDOW) and shown again, more may
 *  sl_flow_commit(f, &buf, len, flags)     publishes them     have come behind it, when the layer calls sl_flow_resume(f).
 *  or sl_buf_free(f->edge, &buf)           gives them back   Taken bytes are credited to the sender by the library.
 *  writable(f): called once after a reserve that gave 0      fin(f): after the last byte was taken.
 *
 * End: when both directions have sent FIN, or a RESET came, or the peer died, over(f, status) is called once; after it
 * returns the layer does not use f again. sl_flow_reset() by the layer ends the flow without a call of over(). In every
 * case the struct stays readable until the end of the loop's turn, so a callback may end its own flow.
 *
 * Moving: a connection through a middle layer (tcp - tls - http) outlives the instance in the middle. Its two ends call
 * sl_flow_keep; from then on what they send is kept until the middle acknowledges it. If the peer is lost, or gives the
 * flow up, orphaned(f) is asked in the place of over(). The flow then takes no bytes (reserve gives 0) and goes on
 *   at the front   by sl_flow_reopen, with another peer
 *   at the back    by sl_flow_adopt, when another peer has come for it (open() with f->moved)
 * or ends by sl_flow_reset. What had been sent and not acknowledged is then sent again by the library.
 * A front whose layer has orphaned() is not even asked when the back had sent FIN before it was lost, or before its RESET:
 * what it has said stands, and over(SL_COMPLETED) comes when it is taken.
 * Entries that an instance has published before it died are always taken first, so for the middle
 *   published is delivered: it acknowledges to one end what it has published to the other one (sl_flow_published). */
#ifndef SL_FLOW_H
#define SL_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "abi/packet.h"
#include "base/list.h"
#include "edge/pieces.h"

struct sl_edge;
struct sl_link;
struct sl_flow;

/* A payload slot of the own arena */
struct sl_buf {
	uint8_t *data;     /* in the region: other peers can read and write it at any time */
	uint32_t offset;   /* from the region's start */
	uint32_t cap;      /* bytes */
};

/* Gives a slot back that was not committed. */
void sl_buf_free(struct sl_edge *e, struct sl_buf *buf);

struct sl_flow_ops {
	/* A flow was opened by the front (only on the back side). msg is the payload of OPEN, private memory of len
	 * bytes, valid during the call. fin: the front will send nothing more (fin() is not called then). Set f->user.
	 * Returns 0, or a negative enum sl_request_status to refuse (the flow is reset with it; over() is not
	 * called). */
	int (*open)(struct sl_flow *f, const void *msg, uint32_t len, bool fin);
	/* p may be shared memory that changes while it is read: copy what decides something. Returns the bytes taken, 0
	 * ... len. */
	uint32_t (*data)(struct sl_flow *f, const uint8_t *p, uint32_t len);
	void (*fin)(struct sl_flow *f);
	void (*writable)(struct sl_flow *f);
	/* status SL_COMPLETED: both sides finished. Otherwise why; f->unseen tells whether the peer ever took the
	 * OPEN. */
	void (*over)(struct sl_flow *f, enum sl_request_status status);
	/* The front wishes the flow to end soon: end it at the next moment that is polite in your protocol, or hand the
	 * wish on with sl_flow_drain. On the front side: the back wishes to be relieved of the flow; sl_flow_hand_over
	 * if there is another one. NULL: the wish is ignored. */
	void (*drain)(struct sl_flow *f);

	/* --- for flows that move; NULL where they do not --- */

	/* The ends: the peer is lost. True: the flow is kept without a peer, see above. */
	bool (*orphaned)(struct sl_flow *f);
	/* The front end: keep these bytes, at most SL_STATE_LEN, for sl_flow_reopen. msg: private memory. */
	void (*state)(struct sl_flow *f, const void *msg, uint32_t len);
	/* The middle: the front knows where the flow can go on: call sl_flow_give_up on both sides. */
	void (*hand_over)(struct sl_flow *f);
	/* The middle: the back end is here, and what it keeps follows. */
	void (*resumed)(struct sl_flow *f, const struct sl_flow_marks *m);
};

struct sl_flow {
	/* for the layer */
	void *user;
	struct sl_edge *edge;
	uint64_t request_id;
	uint16_t peer_vm;
	bool traced;
	bool unseen;           /* valid in over(): the OPEN was still pending when the peer died, so nothing of it was done */
	bool tx_fin;           /* we have sent FIN */
	bool rx_fin;           /* the peer's FIN came (maybe behind bytes not yet taken) */
	bool moved;            /* valid in open(): another instance takes a flow over */
	bool whole;            /* set it in open(): data() gets one entry at a time, and takes all of it or nothing */
	uint64_t mark;         /* goes with the DATA that is sent next, unless 0 */

	/* for flow.c only */
	const struct sl_flow_ops *ops;
	struct sl_link *link;
	uint32_t flow_id;
	uint32_t tx_window;    /* bytes that may still be sent */
	uint32_t rx_window;    /* bytes that the peer may still send */
	uint32_t rx_credit;    /* taken, not yet credited */
	uint32_t open_seq;     /* number of the OPEN entry in its ring */
	uint8_t state;
	uint8_t owed;          /* what waits for ring space */
	uint8_t reset_status;
	uint8_t reset_flags;
	bool blocked;          /* a reserve gave 0: writable() is due */
	bool drained;          /* the wish to end was sent */
	bool fin_due;          /* fin() is to be called once the backlog is empty */
	bool in_data;
	bool keeps;
	uint32_t sent_end;     /* number of the entry behind the last one sent */
	uint32_t rx_stale;     /* bytes of the backlog that came from a former peer: not credited to this one */
	uint32_t piece_max;    /* bytes in one entry; 0: no limit but the slot's */
	uint32_t ack_len;      /* ACK that is owed */
	uint64_t ack_mark;
	struct sl_flow_marks seen;
	struct sl_pieces backlog;   /* bytes not taken */
	struct sl_pieces kept;      /* bytes not acknowledged */
	uint32_t replayed;     /* what of them has been sent again, as sl_pieces_next counts */
	struct sl_list link_node;   /* among the flows of its link */
	struct sl_list wait_node;   /* among those that wait for window, slot or ring space */
};

/* Opens a flow to the instance that select_best_vm names. Front side only.
 * request_id: 0 makes a new one. flags: SL_F_FIN if nothing follows, SL_F_TRACE.
 * Returns 0 and *ret; -ENETUNREACH no active receiver; -EAGAIN no slot, ring entry or flow index free (try again from a
 * later event or a timer); -EMSGSIZE len is more than a big slot. */
int sl_flow_open(struct sl_edge *e, uint64_t request_id, const void *msg, uint32_t len, uint32_t flags, void *user,
		 struct sl_flow **ret);

/* Gets a slot to write up to min(want, window, slot size) bytes into. Returns the number of bytes that fit, or 0:
 * blocked, then writable() follows. Small slots serve want <= SL_SMALL_LEN, big ones the rest; every buf must be
 * committed or freed before the callback returns. */
uint32_t sl_flow_reserve(struct sl_flow *f, uint32_t want, struct sl_buf *buf);

/* Sends len bytes (1 ... what reserve returned) of buf. flags: SL_F_FIN or 0. Never fails. */
void sl_flow_commit(struct sl_flow *f, struct sl_buf *buf, uint32_t len, uint32_t flags);

/* Copies and sends as much of p as the flow takes now. Returns the bytes sent, 0 ... len; less than len: blocked. */
uint32_t sl_flow_write(struct sl_flow *f, const void *p, uint32_t len);

/* Sends FIN without data. Never fails (it waits inside the library for ring space). Twice is once. */
void sl_flow_fin(struct sl_flow *f);

/* Ends the flow at once in both directions. Never fails. */
void sl_flow_reset(struct sl_flow *f, enum sl_request_status status);

/* Tells the peer that this flow should end soon, or, from the back side, that it should go to another instance. Nothing
 * happens if it ended already. Twice is once. */
void sl_flow_drain(struct sl_flow *f);

/* Shows the bytes again that data() did not take, and calls fin() if it was waiting behind them. */
void sl_flow_resume(struct sl_flow *f);

/* Bytes that came and were not taken yet. */
static inline uint32_t sl_flow_backlog(const struct sl_flow *f)
{
	return f->backlog.bytes;
}

/* --- flows that move: the ends --- */

/* From now on what is sent is kept until it is acknowledged, at most SL_FLOW_WINDOW bytes: more is not sent. piece_max: no
 * entry is longer, and what is sent again comes in the very same pieces; 0: the bounds between entries mean nothing. */
void sl_flow_keep(struct sl_flow *f, uint32_t piece_max);

/* Opens an orphan again, at another instance. state: of the last state(). Returns as sl_flow_open does; -ENETUNREACH and
 * -EAGAIN: try again later. */
int sl_flow_reopen(struct sl_flow *f, const void *state, uint32_t len);

/* heir was opened with f->moved by the instance that takes the orphan f over: f goes on with that peer, heir ends
 * without a callback. */
void sl_flow_adopt(struct sl_flow *f, struct sl_flow *heir);

/* Answers a drain() of the back: asks it to give the flow up. False: there is no other instance. */
bool sl_flow_hand_over(struct sl_flow *f);

/* --- the middle --- */

/* All that was sent on this flow has been published: its peer will take it, whatever becomes of us. */
bool sl_flow_published(const struct sl_flow *f);
/* Publishes it now, in the middle of a turn: for a sender that waits for an acknowledgement. */
void sl_flow_publish(struct sl_flow *f);
/* And the peer has taken it. */
bool sl_flow_delivered(const struct sl_flow *f);

/* The first len bytes (SL_ACK_ALL: all, also those to come) that the peer still keeps are safe. Never fails. */
void sl_flow_ack(struct sl_flow *f, uint32_t len, uint64_t mark);

/* Gives the front something to keep. Returns 0 or -EAGAIN. */
int sl_flow_state(struct sl_flow *f, const void *msg, uint32_t len);

/* Opens a flow to this very instance, to take one over that it had with another of ours. Returns as sl_flow_open. */
int sl_flow_take_over(struct sl_edge *e, uint16_t vm_id, uint64_t request_id, const void *msg, uint32_t len, void *user,
		      struct sl_flow **ret);

/* As sl_flow_reset, but the peer keeps its end. */
void sl_flow_give_up(struct sl_flow *f);

/* A slot for exactly len bytes in one entry. False: blocked, writable() follows. */
bool sl_flow_reserve_whole(struct sl_flow *f, uint32_t len, struct sl_buf *buf);

#endif
