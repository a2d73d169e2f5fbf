/* SPDX-License-Identifier: Apache-2.0 */
/* The tls layer's parts. Reading order: bio.c (bytes in and out of OpenSSL), conn.c (one connection), tls.c (the
 * layer: what calls it), context.c (certificates, what is negotiated), tickets.c (resumption), record.h (the record
 * layer of TLS 1.3), stream.c (a connection on it), move.h (how that outlives an instance), takeover.c (and goes on in
 * another one). Private keys exist in this layer's instances only.
 *
 *   tcp ── front flow: ciphertext ──▶ wire.in  ── SSL_read, or sl_record_open  ──▶ slot of the back flow ──▶ http
 *   tcp ◀── slot of the front flow ◀── wire.out ── SSL_write, or sl_record_seal ◀── back flow: plaintext ─── http
 *
 * OpenSSL does handshakes, and all of TLS 1.2. When a TLS 1.3 handshake is done, conn->stream takes over and the SSL is
 * freed.
 *
 * A connection's life:
 *   from        to        when
 *   HANDSHAKE   OPENING   OpenSSL finished the handshake
 *   OPENING     RUNNING   the back flow is open (until then no plaintext is read)
 *   RESUMING    RUNNING   taken over from another instance: http has told where it stands
 *   RUNNING     CLOSED    both directions are over, or the client broke TLS: what it still sends is thrown away
 *   HANDSHAKE, OPENING -> CLOSED  the client broke TLS or left;   any -> freed  both flows are over
 *   never: anything out of CLOSED */
#ifndef SL_TLS_H
#define SL_TLS_H

#include <openssl/ssl.h>

#include "edge/edge.h"
#include "instance/layer.h"
#include "layers/tls/move.h"

enum {
	SL_TLS_PIECE = 16384,        /* bytes of plaintext in one slot: the largest record's (RFC 8446 section 5.1) */
	SL_TLS_RECORD_EXTRA = 64,    /* more than what our ciphers add to one record */
	SL_TLS_TICKET_KEYS = 3,
	SL_TLS_LINGER_MS = 60000,    /* from our FIN to a reset: a slow client may still be reading */
	SL_TLS_ALERT_LINGER_MS = 5000,   /* the same after an alert: there is nothing else to be waited for */
	SL_TLS_RESUME_MS = 2000,     /* for a takeover */
	SL_TLS_RELIEF_MS = 1000,     /* draining: who is not taken over until then is ended by http */
	SL_TLS_EMPTY_MAX = 32,       /* records without data in a row */
};

/* Between one SSL and its front flow: what the custom BIO reads from and writes to. */
struct sl_tls_wire {
	struct sl_flow *flow;        /* NULL: gone, nothing can be read and what is written vanishes */
	const uint8_t *in;           /* ciphertext that data() shows just now: shared memory, OpenSSL gets copies */
	uint32_t in_len;
	uint32_t unread;             /* ciphertext taken since the last plaintext: bounds what can come at once */
	struct sl_buf out;           /* slot being filled; data NULL: none */
	uint32_t out_len, out_cap;
	uint32_t expect;             /* bytes that will be written soon: sizes the next slot */
	uint64_t sent;               /* bytes committed */
	uint32_t taken;              /* ciphertext that OpenSSL has read */
};

enum sl_tls_phase { SL_TLS_HANDSHAKE, SL_TLS_RESUMING, SL_TLS_OPENING, SL_TLS_RUNNING, SL_TLS_CLOSED };

/* A connection on our own record layer */
struct sl_tls_stream {
	struct sl_tls_conn *conn;
	struct sl_half rx, tx;
	uint64_t tx_first;           /* as in struct sl_tls_state */
	bool moves;                  /* the ends keep what another instance needs */
	bool state_due;              /* to be sealed and given to tcp (again) */
	uint8_t token[SL_TOKEN_LEN];
	uint16_t sealed_rx, sealed_tx;   /* generations in what tcp has */
	/* from the client */
	uint8_t *part;               /* a record that is not whole yet: part_len of SL_RECORD_MAX bytes */
	uint32_t part_len;
	uint64_t rx_pos;             /* ciphertext taken since tcp was first given a state */
	uint64_t rx_safe_pos;        /* up to here http has what it contains, once that is published */
	uint64_t rx_safe;            /* the same as a mark */
	uint64_t rx_acked_pos, rx_acked;
	uint64_t rx_skip;            /* http has what is in front of this mark */
	unsigned nb_empty;
	/* to the client */
	uint64_t tx_skip;            /* tcp has what is in front of this mark */
	uint64_t tx_acked;
	uint32_t tx_unacked;         /* bytes of http in records that tcp has once they are published */
	uint64_t announced;          /* SL_MARK_UPDATE or SL_MARK_END: what http was told that the next record is */
	bool update_due;
	uint8_t end_alert;
	uint32_t replay_left;        /* bytes of http that our predecessor may have encrypted already */
	bool fin_ahead;              /* and its FIN */
	struct sl_list ack_node;     /* in sl_tls.acks */
};

struct sl_tls_conn {
	struct sl_list node;         /* in sl_tls.conns */
	struct sl_tls *tls;
	SSL *ssl;                    /* NULL: stream has taken over */
	struct sl_tls_stream *stream;
	uint8_t client_secret[SL_SECRET_MAX], server_secret[SL_SECRET_MAX];   /* of a handshake in TLS 1.3 */
	uint32_t nb_tickets;         /* records that they took */
	struct sl_tls_state *taken;  /* RESUMING: what tcp gave */
	struct sl_flow_marks tcp_marks;
	struct sl_tls_wire wire;     /* wire.flow is the front flow */
	struct sl_flow *back;        /* NULL: not open, or over */
	struct sl_timer timer;       /* handshake deadline, retry of the open, linger */
	struct sl_answer handshake;
	uint64_t deadline_ms;
	uint32_t depth;              /* callbacks on the stack: freed when the last one returns */
	uint8_t state;               /* enum sl_tls_phase */
	bool rx_closed;              /* close_notify came */
	bool tx_closing;             /* http sent FIN: close_notify is being sent */
	bool answered;               /* plaintext came from http */
	bool fin_early;              /* RESUMING: tcp's FIN came already */
	bool draining;               /* tcp wishes it to end soon: to be handed on to http */
	struct sl_flow_open open;
};

/* One set of names with its certificates (at most one of each key type) */
struct sl_tls_host {
	SSL_CTX *ctx;
	char **names;                /* lower case, "*." in front of a wildcard */
	unsigned nb_names;
};

struct sl_tls {
	struct sl_instance *inst;
	struct sl_tls_conf conf;
	struct sl_ticket_key keys[SL_TLS_TICKET_KEYS];
	unsigned nb_keys;
	EVP_CIPHER *ticket_cipher;
	unsigned char alpn[16];      /* what we speak, as in the extension (RFC 7301 section 3.1), the best first */
	unsigned alpn_len;
	BIO_METHOD *bio_method;
	struct sl_crypto crypto;
	uint32_t accelerator;        /* number of the one that was measured last: crypto uses it, or is faster */
	uint32_t watch_ms;           /* until it is looked for again */
	struct sl_pool_key pool;
	bool has_pool;
	uint8_t plain[SL_RECORD_MAX], cipher[SL_RECORD_MAX];   /* one record each, private */
	struct sl_list acks;         /* streams with something to acknowledge or to send later */
	struct sl_timer ack_timer, relief_timer, speed_timer;
	struct sl_tls_host *hosts;   /* [0] is the default */
	unsigned nb_hosts;
	struct sl_list conns;
	uint32_t nb_conns;
};

/* tls.c */
extern const struct sl_layer sl_layer_tls;

/* bio.c */
/* The method of all wire BIOs, or NULL: no memory. Freed with BIO_meth_free. */
BIO_METHOD *sl_tls_bio_method(void);
/* A BIO on *wire, which must outlive it, or NULL. */
BIO *sl_tls_bio_new(const BIO_METHOD *method, struct sl_tls_wire *wire);
/* Sends what has been gathered. fin: nothing more will be written. */
void sl_tls_wire_flush(struct sl_tls_wire *wire, bool fin);
/* The flow is over or about to be reset: forgets it and gives the slot back. */
void sl_tls_wire_drop(struct sl_tls_wire *wire);

/* conn.c */
/* NULL: no memory. f is its front flow, open the payload of the OPEN; without one the connection has no SSL. */
struct sl_tls_conn *sl_tls_conn_new(struct sl_tls *tls, struct sl_flow *f, const struct sl_flow_open *open);
/* Each callback begins with enter and ends with leave, which sends the gathered ciphertext and frees the connection
 * if both flows are over. All below but abort are to be called in between. */
void sl_tls_conn_enter(struct sl_tls_conn *c);
void sl_tls_conn_leave(struct sl_tls_conn *c);
void sl_tls_conn_handshake(struct sl_tls_conn *c);
/* Our direction ends here; if the client's does not within that time, a reset follows. */
void sl_tls_conn_finish(struct sl_tls_conn *c, uint32_t linger_ms);
/* SSL_read into slots of the back flow until there is no ciphertext or no room. */
void sl_tls_conn_read(struct sl_tls_conn *c);
/* Sends close_notify and FIN; to be called again from writable() while c->tx_closing is set. */
void sl_tls_conn_shutdown(struct sl_tls_conn *c);
/* The client broke TLS; OpenSSL has written the alert already. */
void sl_tls_conn_fail(struct sl_tls_conn *c);
void sl_tls_back_reset(struct sl_tls_conn *c, enum sl_request_status status);
/* Resets both flows. */
void sl_tls_conn_reset(struct sl_tls_conn *c, enum sl_request_status status);
/* The same from outside of a callback: frees the connection. */
void sl_tls_conn_abort(struct sl_tls_conn *c, enum sl_request_status status);

/* stream.c: the same as above for a connection with a stream */
/* Takes the connection over from OpenSSL. Returns false if it can not (no memory). */
bool sl_tls_stream_new(struct sl_tls_conn *c);
void sl_tls_stream_free(struct sl_tls_conn *c);
uint64_t sl_tls_rx_mark(const struct sl_tls_stream *s);   /* of the next record */
uint64_t sl_tls_tx_mark(const struct sl_tls_stream *s);
uint32_t sl_tls_stream_input(struct sl_tls_conn *c, const uint8_t *p, uint32_t len);    /* returns the bytes taken */
uint32_t sl_tls_stream_output(struct sl_tls_conn *c, const uint8_t *p, uint32_t len);   /* the same; if it moves: all or none */
void sl_tls_stream_shutdown(struct sl_tls_conn *c);
void sl_tls_stream_fail(struct sl_tls_conn *c, uint8_t alert);
/* Sends what became due: acknowledgements, key updates, alerts. At the beginning of each callback, and by the timer. */
void sl_tls_stream_serve(struct sl_tls_conn *c);
void sl_tls_acks_fire(struct sl_timer *t);

/* takeover.c */
/* Gives tcp the sealed state. */
void sl_tls_state_offer(struct sl_tls_conn *c);
/* A flow that another instance had. Returns 0 or the negative status to refuse it with. */
int sl_tls_takeover(struct sl_tls *tls, struct sl_flow *f, const void *msg, uint32_t len);
/* Opens the flow to http, or tries again later. */
void sl_tls_takeover_open(struct sl_tls_conn *c);
void sl_tls_takeover_resumed(struct sl_tls_conn *c, const struct sl_flow_marks *http);
void sl_tls_hand_over(struct sl_tls_conn *c);
void sl_tls_relieve(struct sl_tls *tls);      /* draining: asks tcp to take all connections to others */
void sl_tls_relief_fire(struct sl_timer *t);

/* speed.c */
/* Measures, as sl_tls_aead_choose would, for inst->rehearsed: records, then handshakes. */
bool sl_tls_rehearse(struct sl_instance *inst);
/* What is fastest here, and inst->crypto: as rehearsed, or measured, which takes some milliseconds, in a TCG guest
 * hundreds. NULL: no memory. */
struct sl_aead *sl_tls_aead_choose(struct sl_tls *tls);
/* From now on inst->crypto follows an accelerator that comes, fails, and is tried until it works again. */
void sl_tls_aead_watch(struct sl_tls *tls);
void sl_tls_speed_fire(struct sl_timer *t);

/* context.c */
/* Reads the certificates and keys of the configuration, wipes the keys there. Returns 0 or -errno, reason recorded. */
int sl_tls_contexts_load(struct sl_tls *tls);
void sl_tls_contexts_free(struct sl_tls *tls);
/* The context for a server name, the default one if no certificate has it. name: zero-terminated or NULL. */
SSL_CTX *sl_tls_context_find(const struct sl_tls *tls, const char *name);

/* Completes what the next layer is told with what the handshake brought. */
void sl_tls_negotiated(const SSL *ssl, struct sl_flow_open *open);

/* tickets.c */
/* Reads the pool's ticket keys of the configuration, wipes them there. Returns 0 or -errno, reason recorded. */
int sl_tls_tickets_load(struct sl_tls *tls);
/* Makes ctx issue and take tickets (or neither), as the configuration says. Returns 0 or -ENOMEM. */
int sl_tls_tickets_set(struct sl_tls *tls, SSL_CTX *ctx);

#endif
