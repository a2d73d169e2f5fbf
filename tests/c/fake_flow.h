/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for the flow library and the instance: runs one layer in one process without shared memory, so that a
 * test can play the client side and the next layer and decide when there is a window, a slot or a route.
 *
 * A test opens front flows (fake_open) and finds the flows that the layer opened (fake_last_opened). In both cases
 * struct fake_flow is one flow seen from its other end: fake_send() gives the layer bytes, out[0 ... out_len) is
 * what the layer has sent. The bytes given to data() lie in an allocation of exactly that size which is overwritten
 * and freed afterwards: reading past or keeping them is found. */
#ifndef SL_FAKE_FLOW_H
#define SL_FAKE_FLOW_H

#include "instance/layer.h"

enum { FAKE_TRACES = 256, FAKE_CONFS = 8 };

struct fake;

struct sl_edge {   /* the library's own struct is opaque to layers */
	struct fake *fake;
};
void sl_buf_free(struct sl_edge *e, struct sl_buf *buf);

struct fake_flow {
	struct sl_flow flow;      /* what the layer holds; tx_window: what the layer may still send */
	struct fake *fake;
	struct sl_list node;      /* fake->flows, oldest first */
	bool by_layer;            /* the layer opened it */
	uint8_t *msg;             /* by_layer: payload of the OPEN */
	uint32_t msg_len;
	uint32_t open_flags;
	uint8_t *out;             /* all bytes that the layer has sent, zero-terminated for convenience */
	size_t out_len;
	bool out_fin;
	bool out_reset;
	enum sl_request_status out_status;   /* of its reset */
	unsigned nb_commits;      /* entries that carried data */
	bool ended;               /* over() was called, or either side reset it */
	bool out_moved;           /* the reset was a handing over */
	bool out_hand_over;
	bool orphan;              /* its peer is lost, the layer keeps it */
	uint8_t state[SL_STATE_LEN];   /* what the layer gave to be kept */
	uint32_t state_len;
	uint64_t acked;           /* bytes that the layer has acknowledged */
	uint64_t got_mark, ack_mark;   /* the last that came with its DATA and with an ACK */
	bool dirty;               /* something was sent since fake_collected */
};

struct fake_trace {
	uint64_t request_id, parent;
	enum sl_trace_point point;
};

struct fake {
	struct sl_instance inst;
	const struct sl_layer *layer;
	struct sl_edge front, back;
	struct sl_list flows;
	/* knobs, may be changed at any time */
	uint32_t window;          /* of flows to come, bytes; default: as good as none */
	uint32_t slot_len;        /* bytes that one reserve gives at most; default SL_BIG_LEN */
	uint32_t slots;           /* that may still be used; UINT32_MAX (default): without end */
	int open_err;             /* sl_flow_open fails with it; 0 = works */
	bool no_next;             /* sl_instance_next_edge gives NULL */
	bool manual;              /* what the layer sends is published and delivered by fake_collected only */
	void (*sent)(struct fake_flow *ff, const uint8_t *p, uint32_t len);   /* sees each DATA; may be NULL */
	/* seen */
	unsigned nb_opened;       /* by the layer */
	struct fake_trace traces[FAKE_TRACES];
	unsigned nb_traces;
	unsigned nb_bufs;         /* reserved, neither committed nor freed: 0 whenever the layer has returned */
	char fail[SL_TEXT_LEN];   /* text of sl_instance_fail */
	struct {
		enum sl_conf_type type;
		const void *data;
		uint32_t len;
	} confs[FAKE_CONFS];
	unsigned nb_confs;
	uint64_t next_request_id;
};

/* Zeroes *k. Then: fake_conf for each item, fake_start. */
void fake_init(struct fake *k, const struct sl_layer *layer);
void fake_conf(struct fake *k, enum sl_conf_type type, const void *data, uint32_t len);   /* data stays the caller's */
int fake_start(struct fake *k);   /* load, init, start: returns the first error */
void fake_stop(struct fake *k);   /* stop, then frees all flows */
void fake_flows_free(struct fake *k);   /* the layer has none any more */

/* The layer before opens a flow. Returns NULL if the layer refused; *status (may be NULL) then says why. */
struct fake_flow *fake_open(struct fake *k, const void *msg, uint32_t len, uint32_t flags, int *status);
/* Another instance had this flow: OPEN with SL_F_MOVE. NULL: refused. */
struct fake_flow *fake_take_over(struct fake *k, uint64_t request_id, const void *msg, uint32_t len);
void fake_resumed(struct fake_flow *ff, const struct sl_flow_marks *m);
void fake_hand_over(struct fake_flow *ff);   /* DRAIN with SL_F_MOVE */
/* The peer is lost, or gives the flow up. Returns whether the layer keeps it. */
bool fake_orphan(struct fake_flow *ff);
/* The layer's entries on this flow are the test's now: forgets them. */
void fake_collected(struct fake_flow *ff);
/* What the peer can do. Each call ends a turn: due over() calls are made. */
void fake_send(struct fake_flow *ff, const void *p, size_t len, uint32_t flags);   /* flags: SL_F_FIN or 0 */
void fake_reset(struct fake_flow *ff, enum sl_request_status status);              /* over(status) */
void fake_die(struct fake_flow *ff, bool unseen);                                  /* over(SL_ERROR_PEER_GONE) */
void fake_credit(struct fake_flow *ff, uint32_t bytes);   /* WINDOW; calls writable() if it is due */
void fake_slots(struct fake *k, uint32_t n);              /* so many slots are free now; calls writable() */
void fake_out_drop(struct fake_flow *ff);                                          /* forgets out */
void fake_tick(struct fake *k, uint64_t ms);                                       /* time passes, timers fire */

/* The flow that the layer opened last, NULL: none yet. */
struct fake_flow *fake_last_opened(struct fake *k);
static inline uint32_t fake_backlog(const struct fake_flow *ff)   /* bytes that the layer has not taken */
{
	return sl_flow_backlog(&ff->flow);
}

#endif
