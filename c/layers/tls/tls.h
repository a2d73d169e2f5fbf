/* SPDX-License-Identifier: Apache-2.0 */
/* The tls layer's parts. Reading order: bio.c (bytes in and out of OpenSSL), conn.c (one connection), tls.c (the
 * layer: what calls it), context.c (certificates, what is negotiated), tickets.c (resumption). Private keys
 * exist in this layer's instances only.
 *
 *   tcp ── front flow: ciphertext ──▶ wire.in  ── SSL_read  ──▶ slot of the back flow ──▶ http
 *   tcp ◀── slot of the front flow ◀── wire.out ── SSL_write ◀── back flow: plaintext ─── http
 *
 * A connection's life:
 *   from        to        when
 *   HANDSHAKE   OPENING   OpenSSL finished the handshake
 *   OPENING     RUNNING   the back flow is open (until then no plaintext is read)
 *   RUNNING     CLOSED    both directions are over, or the client broke TLS: what it still sends is thrown away
 *   HANDSHAKE, OPENING -> CLOSED  the client broke TLS or left;   any -> freed  both flows are over
 *   never: anything out of CLOSED */
#ifndef SL_TLS_H
#define SL_TLS_H

#include <openssl/ssl.h>

#include "edge/edge.h"
#include "instance/layer.h"

enum {
	SL_TLS_PIECE = 16384,        /* bytes of plaintext in one slot: the largest record's (RFC 8446 section 5.1) */
	SL_TLS_RECORD_EXTRA = 64,    /* more than what our ciphers add to one record */
	SL_TLS_TICKET_KEYS = 3,
	SL_TLS_LINGER_MS = 60000,    /* from our FIN to a reset: a slow client may still be reading */
	SL_TLS_ALERT_LINGER_MS = 5000,   /* the same after an alert: there is nothing else to be waited for */
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
};

enum sl_tls_state { SL_TLS_HANDSHAKE, SL_TLS_OPENING, SL_TLS_RUNNING, SL_TLS_CLOSED };

struct sl_tls_conn {
	struct sl_list node;         /* in sl_tls.conns */
	struct sl_tls *tls;
	SSL *ssl;
	struct sl_tls_wire wire;     /* wire.flow is the front flow */
	struct sl_flow *back;        /* NULL: not open, or over */
	struct sl_timer timer;       /* handshake deadline, retry of the open, linger */
	struct sl_answer handshake;
	uint64_t deadline_ms;
	uint32_t depth;              /* callbacks on the stack: freed when the last one returns */
	uint8_t state;               /* enum sl_tls_state */
	bool rx_closed;              /* close_notify came */
	bool tx_closing;             /* http sent FIN: close_notify is being sent */
	bool answered;               /* plaintext came from http */
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
/* NULL: no memory. f is its front flow, open the payload of the OPEN. */
struct sl_tls_conn *sl_tls_conn_new(struct sl_tls *tls, struct sl_flow *f, const struct sl_flow_open *open);
/* Each callback begins with enter and ends with leave, which sends the gathered ciphertext and frees the connection
 * if both flows are over. All below but abort are to be called in between. */
void sl_tls_conn_enter(struct sl_tls_conn *c);
void sl_tls_conn_leave(struct sl_tls_conn *c);
void sl_tls_conn_handshake(struct sl_tls_conn *c);
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
