/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* RequestPacket: the 32 bytes that pass between two layers, and the small protocol of flows that they speak.
 *
 * A flow is what stays with one receiver: a connection on tcp-tls, tls-http, tcp-http; a single request on http-app.
 * The front layer (nearer to the client) opens it, both sides then send on it:
 *
 *   front                          back
 *   OPEN [+ payload] ───────────▶        payload: struct sl_flow_open, or struct sl_http_request on http-app
 *   DATA ───────────▶  ◀─────────── DATA  bytes in order; on http-app the first from the back begins with struct sl_http_response
 *   DATA|FIN ───────▶  ◀─────── DATA|FIN  end of that direction; the flow ends when both have been sent
 *   WINDOW ─────────▶  ◀───────── WINDOW  the receiver has used up length bytes: the sender may send as many more
 *   DRAIN ──────────▶                     the front wishes the flow to end soon; the back ends it when its protocol has a polite
 *                                         moment for it (HTTP: after the running response)
 *   RESET ──────────▶  ◀────────── RESET  the flow is over at once, in both directions; status says why
 *
 * Each direction of a flow starts with a window of SL_FLOW_WINDOW bytes. Only DATA counts against it; OPEN does not.
 *
 * A flow that moves goes on when the instance in the middle of a connection (tls) dies or drains, because both its ends (tcp,
 * http) keep what another instance needs. An end keeps each byte that it has sent until the middle says that it is safe:
 *
 *   ACK ────────────▶  ◀──────────── ACK  the first length of the kept bytes are safe at the connection's other end
 *                      ◀────────── STATE  payload: to be kept by the front, for whoever takes the flow over; the latest counts
 *                      ◀────────── DRAIN  the middle wishes to be relieved of the flow
 *   DRAIN|MOVE ─────▶                     the front knows another one: give it up
 *   RESET|MOVE ─────▶  ◀───── RESET|MOVE  given up: the end keeps its half, another instance will come for it
 *   OPEN|MOVE ──────▶                     another instance takes over. tcp -> tls: struct sl_flow_marks, then the last STATE;
 *                                         tls -> http: the token of struct sl_flow_open
 *                      ◀──────── RESUMED  tls-http: struct sl_flow_marks. The kept bytes follow as DATA
 *
 * With DATA and ACK the middle gives a mark in the place of request_id: the ends give the last one of each kind back in
 * struct sl_flow_marks; what it means is the middle's affair (layers/tls/move.h). */
#ifndef SL_ABI_PACKET_H
#define SL_ABI_PACKET_H

#include "base.h"

enum {
	SL_FLOW_WINDOW = 131072,      /* bytes of DATA that may be sent before a WINDOW comes back */
	SL_FLOW_INDEX_BITS = 20,      /* flow_id = generation << 20 | index; the front peer chooses it */
	SL_FLOW_INDEX_MASK = 0xfffff,
	SL_TOKEN_LEN = 16,
	SL_STATE_LEN = 1024,          /* bytes of a STATE, at most */
	SL_ACK_ALL = 0xffffffff,      /* length of an ACK: the flow does not move, nothing need be kept any more */
};

enum sl_op {
	SL_OP_OPEN = 1,
	SL_OP_DATA = 2,
	SL_OP_WINDOW = 3,
	SL_OP_RESET = 4,
	SL_OP_DRAIN = 5,
	SL_OP_ACK = 6,
	SL_OP_STATE = 7,
	SL_OP_RESUMED = 8,
};

enum sl_packet_flag {
	SL_F_FIN = 1,      /* with OPEN or DATA: nothing more comes in this direction */
	SL_F_TRACE = 2,    /* with OPEN: every instance on the way writes struct sl_trace_event for this request */
	SL_F_MOVE = 4,     /* with OPEN, RESET, DRAIN: the flow moves to another instance */
};

/* status of a RequestPacket (RESET: why) and of a completion */
enum sl_request_status {
	SL_PENDING = 0,         /* in the ring, not consumed */
	SL_IN_PROGRESS = 1,     /* consumed, not completed */
	SL_COMPLETED = 2,
	SL_ERROR = 3,           /* of no known cause */
	SL_ERROR_REFUSED = 4,   /* the receiver takes no new flow: draining, table full */
	SL_ERROR_PEER_GONE = 5, /* the instance that held the flow died */
	SL_ERROR_PROTOCOL = 6,  /* the client broke its protocol */
	SL_ERROR_TIMEOUT = 7,
	SL_ERROR_STALE = 8,     /* an entry of a former incarnation */
	SL_ERROR_CLIENT = 9,    /* the client went away */
};

/* Writer: sender, before it publishes. Reader: receiver, which copies it out once, checks the copy and never looks
 * again. */
struct sl_request_packet {
	__u64 request_id;     /* the same along the whole chain: connection or request; VMID of its maker << 48 | number; never 0.
				 From the middle of a flow that moves, with DATA and ACK: a mark */
	__u32 offset;         /* data: byte offset from the region's start, inside the sender's arena */
	__u32 length;         /* data: bytes. With WINDOW: the credit. 0 = no data */
	__u32 flow_id;
	__u16 next_vm_id;     /* receiver */
	__u16 status;         /* enum sl_request_status */
	/* the last eight bytes are stored after all others, at once: they say that the entry is there, and whose it is */
	__u32 epoch;          /* incarnation of the sender: entries of a former one are refused */
	__u8 lap;             /* 1 and 2 in turn, by how often the ring has wrapped; 0: never written for this pairing */
	__u8 flags;           /* enum sl_packet_flag */
	__u8 protocol_layer;  /* layer of the receiver */
	__u8 op;              /* enum sl_op */
};
_Static_assert(sizeof(struct sl_request_packet) == 32, "two to a cache line");

/* Payload of OPEN on an edge whose flow is a connection. Writer: tcp, handed on unchanged by tls. */
struct sl_flow_open {
	__u8 client_addr[16];   /* IPv6, or IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2) */
	__u8 local_addr[16];    /* the virtual IP that was asked */
	__be16 client_port;
	__be16 local_port;
	__u16 service;          /* index of the service */
	__u8 tls_version;       /* 0: plain; else the minor version of the TLS record protocol: 3 = TLS 1.2, 4 = TLS 1.3 */
	__u8 alpn;              /* enum sl_alpn; set by tls */
	__u8 sni_len;           /* bytes of sni; set by tls */
	__u8 sni[255];          /* server name that the client asked for, not terminated */
	__u64 accepted_ns;      /* when tcp accepted the connection */
	__u8 token[SL_TOKEN_LEN];   /* set by tls: who knows it may take this flow over; all zero: it does not move */
};
_Static_assert(sizeof(struct sl_flow_open) == 320, "no implicit padding");

/* What an end of a flow that moves has seen of it. 0: none yet */
struct sl_flow_marks {
	__u64 got;     /* mark of the last DATA that came */
	__u64 kept;    /* mark of the last ACK: the bytes that are sent again begin there */
	__u32 kept_len;   /* bytes that are sent again */
	__u8 got_fin;     /* 1: FIN came, nothing more may be sent to this end */
	__u8 sent_fin;    /* 1: FIN was sent, and will be again */
	__u8 pad[2];
};
_Static_assert(sizeof(struct sl_flow_marks) == 24, "no implicit padding");

enum sl_alpn {
	SL_ALPN_NONE = 0,
	SL_ALPN_HTTP_1_1 = 1,
	SL_ALPN_H2 = 2,
};

#endif
