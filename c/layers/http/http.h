/* SPDX-License-Identifier: Apache-2.0 */
/* The layer `http`: HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) towards the client, struct sl_http_request and
 * sl_http_response (abi/http.h) towards the next layer. Private to c/layers/http.
 *
 *   http.c      the struct of functions, configuration, pools, callbacks of the front flow, timers
 *   conn.c      one connection: its states, what comes in, how a request ends and how a connection ends
 *   forward.c   the request on its way: open, wait for room, retry, body, callbacks of the back flow
 *   reply.c     the answer on its way: head, body, chunk framing, own error messages
 *   request.c   head of a request -> struct sl_http_request, by llhttp and the checks that it lacks
 *   response.c  struct sl_http_response -> head of an answer
 *   body.c      decodes identity and chunked bodies
 *   validate.c  characters, lines, host, target
 *   move.c      a connection whose tls instance dies or drains, and another one takes it over
 *
 * One request at a time runs on a connection. What follows it is not taken until it is done, so order and
 * backpressure come for free:
 *
 *   input        bytes of the client are              next
 *   IN_HEAD      collected into a private head        IN_BODY, IN_HOLD when the head is whole
 *   IN_BODY      decoded into the back flow           IN_HOLD at the body's end
 *   IN_HOLD      not taken                            IN_HEAD when the answer has ended
 *   IN_DISCARD   thrown away: the answer came first   IN_HEAD at the body's end
 *   IN_CLOSED    thrown away                          never again another
 *
 *   output       the answer                           next
 *   OUT_NONE     no request runs                      OUT_WAIT
 *   OUT_WAIT     nothing of it came                   OUT_BODY its head was good; OUT_LAST we answer ourselves
 *   OUT_BODY     is being passed on                   OUT_LAST the last byte came
 *   OUT_LAST     all of it is in conn->out            OUT_NONE when the client's side took it
 *
 * A function that may end the connection says so; after it conn->front is NULL and the struct stays readable (it is
 * only reused by a later open), so callers look at conn->front instead of carrying a flag around. */
#ifndef SL_HTTP_H
#define SL_HTTP_H

#include <llhttp/llhttp.h>

#include "abi/http.h"
#include "instance/layer.h"

enum http_input { IN_HEAD, IN_BODY, IN_HOLD, IN_DISCARD, IN_CLOSED };
enum http_output { OUT_NONE, OUT_WAIT, OUT_BODY, OUT_LAST };
enum http_timeout { T_NONE, T_IDLE, T_HEAD, T_BODY, T_LINGER };

enum {
	/* text of a head: with the structs before it the message still fits one big slot */
	HTTP_TEXT_MAX = SL_HTTP_HEAD_MAX - sizeof(struct sl_http_request) -
			SL_HTTP_FIELDS_MAX * sizeof(struct sl_http_field),
	HTTP_DISCARD_MAX = 65536,    /* bytes of a body nobody wants that are read to keep a connection */
	HTTP_LINGER_MS = 60000,      /* from our FIN to a reset: a slow client still has bytes on their way */
	HTTP_DRAIN_IDLE_MS = 2000,   /* how long an idle connection that shall end is left for a request already on its way */
	HTTP_ORPHAN_MS = 3000,       /* that a connection is kept whose tls instance is lost */
	HTTP_EARLY_MS = 500,         /* that a claim to a connection waits for it: no living instance leaves its rings for longer */
	HTTP_RECORD_MAX = 16384,     /* to such a layer: bytes in one entry, which becomes one record (RFC 8446 section 5.1) */
	HTTP_TOKEN_BUCKETS = 1024,
	HTTP_RETRY_MS = 10,          /* between two tries to get a slot, besides those at each event */
	HTTP_CONN_OPTIONS_MAX = 32,  /* members of Connection */
};

/* A pooled buffer of one head */
struct http_buf {
	struct http_buf *next;       /* in the pool */
	uint32_t pos;                /* sent or parsed up to here */
	uint32_t len;
	uint8_t data[SL_HTTP_HEAD_MAX + 64];   /* a head, and what may follow it at once: the size of a chunk */
};

/* What the layer itself must know of the request that runs */
struct http_req {
	uint64_t body_len;           /* UINT64_MAX: chunked */
	uint8_t method;              /* enum sl_http_method */
	uint8_t version_minor;
	bool idempotent;             /* RFC 9110 section 9.2.2 */
	bool keep;                   /* the client wants to keep the connection */
	bool expect;                 /* 100 (Continue) is owed (RFC 9110 section 10.1.1) */
};

struct http_body {
	uint64_t left;               /* of the identity body or of the chunk */
	uint64_t total;              /* decoded so far */
	uint64_t max;                /* more: 413 */
	uint32_t framing;            /* bytes of chunk extensions and trailers so far */
	uint8_t state;
	uint8_t digits;              /* of the chunk size */
};

struct http_field {
	char *name;                  /* in the private head: lower case */
	const char *value;           /* NULL until it came */
	uint16_t name_len, value_len;
	bool drop;                   /* not for the next layer */
};

/* Scratch of the parser: a head is parsed in one go, so one serves all connections */
struct http_parser {
	llhttp_t llhttp;
	llhttp_settings_t settings;
	const char *target;
	uint32_t target_len;
	uint32_t nb_fields, max_fields;
	int status;                  /* why a callback stopped the parser */
	struct http_field fields[SL_HTTP_FIELDS_MAX];
};

struct http_layer {
	struct sl_instance *inst;
	struct sl_http_conf conf;
	struct sl_list conns;        /* live ones */
	struct sl_list free_conns;
	struct sl_list waiters;      /* connections whose request found no slot, in order */
	struct sl_list by_token[HTTP_TOKEN_BUCKETS];   /* connections that may move */
	struct sl_timer retry_timer;
	bool serving_waiters;
	struct http_buf *free_bufs;
	uint32_t nb_free_bufs;
	uint32_t nb_conns;
	int64_t date_s;              /* second that date is the text of */
	char date[64];               /* "date: ...\r\n" */
	struct http_parser parser;
	uint8_t line[SL_HTTP_HEAD_MAX];   /* head of the answer being made */
};

struct http_conn {
	struct sl_list node;         /* conns or free_conns */
	struct sl_list wait_node;
	struct sl_list token_node;
	struct http_layer *http;
	struct sl_flow *front;       /* NULL: over; or to come, see move.c */
	struct sl_flow *back;        /* the request at the next layer; NULL: none */
	struct sl_timer timer;       /* for the client's next byte, by timer_for */
	struct sl_timer write_timer; /* for the client to take a byte */
	struct sl_timer orphan_timer;   /* for another tls instance to come */
	struct sl_flow *heir;        /* that has come, before we knew that the former one is lost */
	struct http_buf *head;       /* begun, not whole */
	struct http_buf *msg;        /* the request as it was sent on, kept until the answer begins: for a second try */
	struct http_buf *rsp;        /* head of the answer, not whole */
	struct http_buf *out;        /* to be sent to the client before anything else */
	uint64_t request_id;
	struct sl_answer answer;     /* from when the request's head was whole */
	struct http_req req;
	struct http_body body;
	uint64_t resp_left;          /* bytes of the answer's body to come; UINT64_MAX: not known */
	uint64_t chunk_left;         /* of the chunk whose size was sent */
	uint32_t discarded;
	uint32_t nb_requests;
	uint8_t input, output;       /* enum http_input, http_output */
	uint8_t timer_for;           /* enum http_timeout */
	bool in_data;                /* inside data() of the front flow: the loop there goes on by itself */
	bool keep;                   /* the connection stays after this request */
	bool last;                   /* it shall end: with its next answer, or when it stays idle */
	bool client_fin;
	bool blank;                  /* an empty line before the request line was dropped */
	bool retried;
	bool body_sent;              /* bytes of the body are with the next layer: no second try */
	bool body_blocked;           /* the next layer takes no more of it for now */
	bool resp_chunked;
	bool orphan;                 /* its tls instance is lost, no other one has come yet */
	bool resp_excess;            /* more body than announced was counted */
	/* from struct sl_flow_open */
	bool tls;
	uint8_t token[SL_TOKEN_LEN]; /* who has it may take the connection over; all zero: nobody */
	uint16_t service;
	__be16 client_port;
	uint8_t client_addr[16];
};

/* http.c */
extern const struct sl_layer sl_layer_http;
struct http_buf *sl_http_buf_get(struct http_layer *h);   /* empty; NULL: no memory */
void sl_http_buf_put(struct http_layer *h, struct http_buf **b);   /* *b may be NULL; is NULL afterwards */

/* move.c: connections whose tls instance changes */
void sl_http_token_set(struct http_conn *c, const uint8_t token[SL_TOKEN_LEN]);
void sl_http_token_drop(struct http_conn *c);
/* Another instance comes for a connection: 0, or the negative status to refuse it with. */
int sl_http_take_over(struct http_layer *h, struct sl_flow *heir, const void *token, uint32_t len);
void sl_http_heir_gone(struct http_conn *c);   /* c->heir is over */
bool sl_http_orphaned(struct sl_flow *f);
void sl_http_orphan_fire(struct sl_timer *t);

/* conn.c: each may end the connection */
struct http_conn *sl_http_conn_new(struct http_layer *h);
void sl_http_conn_end(struct http_conn *c);    /* its front flow is over */
void sl_http_conn_free(struct http_conn *c);   /* gives everything back but touches no flow: for conn_end and stop */
void sl_http_conn_reset(struct http_conn *c, enum sl_request_status status);
void sl_http_conn_close(struct http_conn *c);  /* politely: FIN, then throw away what comes */
void sl_http_conn_drain(struct http_conn *c);  /* politely, with the next answer or when idle */
uint32_t sl_http_input(struct http_conn *c, const uint8_t *p, uint32_t len);   /* bytes taken; 0: not now */
void sl_http_timer_set(struct http_conn *c);
void sl_http_timer_fire(struct sl_timer *t);
void sl_http_request_done(struct http_conn *c);

/* forward.c */
extern const struct sl_flow_ops sl_http_back_ops;
void sl_http_open(struct http_conn *c);                /* sends the request in c->msg on; may end the connection */
void sl_http_waiters_serve(struct http_layer *h);
void sl_http_retry_fire(struct sl_timer *t);
uint32_t sl_http_forward(struct http_conn *c, const uint8_t *p, uint32_t len);
void sl_http_expect(struct http_conn *c);              /* no byte of the client is left: sends 100 if it is due */
void sl_http_back_drop(struct http_conn *c, enum sl_request_status status);

/* reply.c */
bool sl_http_flush(struct http_conn *c);               /* sends c->out; true: nothing is pending */
bool sl_http_out_add(struct http_conn *c, const void *p, uint32_t len);   /* false: no memory */
void sl_http_error(struct http_conn *c, int status);   /* answers it ourselves; may end the connection */
uint32_t sl_http_reply(struct http_conn *c, const uint8_t *p, uint32_t len);   /* its bytes; returns those taken */
void sl_http_reply_end(struct http_conn *c);           /* its FIN */

/* request.c */
void sl_http_parser_init(struct http_parser *ps);
/* Parses the private head of len bytes (its names become lower case) into the message at msg, which has room for
 * SL_HTTP_HEAD_MAX bytes. Client address and service are left zero. Returns 0 or the status of the answer. */
int sl_http_request_parse(struct http_parser *ps, const struct sl_http_conf *conf, uint8_t *head, uint32_t len,
			  uint8_t *msg, struct http_req *req);

/* response.c */
struct http_reply {
	uint16_t status;
	bool head_only;        /* the request was HEAD */
	bool http_1_0;
	bool keep;
	bool chunked;          /* out: chosen framing */
	uint64_t body_left;    /* out: bytes of body that must follow, UINT64_MAX: not known */
};
/* Checks the private message of a hostile next layer and writes the head of the answer. Decides the framing:
 * chunked, body_left and keep of *r are set. date: whole line. Returns the head's length or -EBADMSG. */
int sl_http_response_write(const uint8_t *msg, const char *date, struct http_reply *r, uint8_t *out, uint32_t cap);
/* Writes a whole answer of our own. Returns its length; cap is enough with 512 bytes. */
uint32_t sl_http_error_write(const struct http_reply *r, const char *date, uint8_t *out, uint32_t cap);
/* Writes "date: <IMF-fixdate>\r\n" and a zero (RFC 9110 section 5.6.7). Uses no locale and no time zone file: the
 * sandbox has none. */
void sl_http_date_write(int64_t unix_s, char out[64]);

/* body.c */
void sl_http_body_init(struct http_body *b, uint64_t body_len, uint64_t max);
bool sl_http_body_ended(const struct http_body *b);
bool sl_http_body_in_data(const struct http_body *b);   /* the next byte is payload */
/* Decodes up to len bytes at p, each read once, into out (NULL: throws away) until room bytes are made or the body
 * ends. *made: bytes written. Returns the bytes used up, or the negative status of the answer (*made is valid). */
int64_t sl_http_body_decode(struct http_body *b, const uint8_t *p, uint32_t len, uint8_t *out, uint32_t room,
			    uint32_t *made);

/* validate.c */
bool sl_http_token_ok(const char *p, uint32_t len);            /* RFC 9110 section 5.6.2, at least one character */
bool sl_http_token_lower(char *p, uint32_t len);               /* the same, and makes it lower case */
bool sl_http_token_lower_ok(const char *p, uint32_t len);      /* the same, and it is lower case already */
bool sl_http_value_ok(const char *p, uint32_t len);            /* RFC 9110 section 5.5, any length */
bool sl_http_authority_ok(const char *p, uint32_t len);        /* host[:port], no user */
/* Equal but for the case of p. */
bool sl_http_same(const char *p, const char *lower, uint32_t len);
bool sl_http_text_is(const char *p, uint32_t len, const char *lower);   /* lower: zero-terminated */
/* One whole line of a head with its ending: 0, or the status of the answer. */
int sl_http_line_check(const uint8_t *p, uint32_t len, bool first);
/* Next member of a comma-separated list without white space around it; false: the end. */
bool sl_http_list_next(const char **p, const char *end, const char **member, uint32_t *len);

struct http_target {
	const char *path, *query, *authority;   /* authority NULL: Host has it */
	uint32_t path_len, query_len, authority_len;
};
/* RFC 9112 section 3.2: origin-form, absolute-form, asterisk-form. Returns 0 or 400. */
int sl_http_target_split(const char *p, uint32_t len, bool options, struct http_target *t);

#endif
