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
 * case the struct stays readable until the end of the loop's turn, so a callback may end its own flow. */
#ifndef SL_FLOW_H
#define SL_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "abi/packet.h"
#include "base/list.h"

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
	/* The front wishes the flow to end soon (only on the back side): end it at the next moment that is polite in
	 * your protocol, or hand the wish on with sl_flow_drain. NULL: the wish is ignored. */
	void (*drain)(struct sl_flow *f);
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

	/* for flow.c only */
	const struct sl_flow_ops *ops;
	struct sl_link *link;
	uint32_t flow_id;
	uint32_t tx_window;    /* bytes that may still be sent */
	uint32_t rx_window;    /* bytes that the peer may still send */
	uint32_t rx_credit;    /* taken, not yet credited */
	uint32_t open_seq;     /* number of the OPEN entry in its ring */
	uint8_t state;
	uint8_t owed;          /* control entries that wait for ring space */
	uint8_t reset_status;
	bool blocked;          /* a reserve gave 0: writable() is due */
	bool drained;          /* the wish to end was sent */
	bool fin_due;          /* fin() is to be called once the backlog is empty */
	bool in_data;
	uint8_t *backlog;      /* bytes not taken: backlog[backlog_pos ... backlog_len) */
	uint32_t backlog_pos, backlog_len;
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

/* Tells the back that this flow should end soon. Front side only; nothing happens if it ended already. Twice is
 * once. */
void sl_flow_drain(struct sl_flow *f);

/* Shows the bytes again that data() did not take, and calls fin() if it was waiting behind them. */
void sl_flow_resume(struct sl_flow *f);

/* Bytes that came and were not taken yet. */
static inline uint32_t sl_flow_backlog(const struct sl_flow *f)
{
	return f->backlog_len - f->backlog_pos;
}

#endif
