/* SPDX-License-Identifier: Apache-2.0 */
/* A TLS 1.3 connection as it goes from one tls instance to the next: the test plays tcp and http, which keep what they are
 * told to keep. Every sl_record_seal is watched: two plaintexts under one nonce end the test, also if nobody ever sees them. */
#ifndef SL_TLS_LINE_H
#define SL_TLS_LINE_H

#include "tls_rig.h"

#include "edge/pieces.h"
#include "layers/tls/move.h"

struct end {
	struct sl_pieces kept;
	struct sl_flow_marks marks;
	uint64_t sent, got;      /* bytes of text */
};

struct line {
	struct world *w;         /* the present instance */
	struct fake_flow *front, *back;
	struct client c;         /* only its SSL and BIOs are used */
	struct end tcp, http;    /* tcp.kept: ciphertext; http.sent, http.got: text */
	struct end client;       /* sent, got: text */
	uint64_t request_id;
	uint8_t state[SL_STATE_LEN];
	uint32_t state_len;
	uint8_t token[SL_TOKEN_LEN];
	unsigned dice;
};

void line_open(struct line *l, unsigned dice, int suite);   /* suite: 0 ... 2 */
void line_close(struct line *l);
unsigned roll(struct line *l, unsigned n);

/* The two sides say something; checked where it comes out. */
void client_say(struct line *l);
void http_say(struct line *l);
/* What the instance has sent is published, and taken. */
void front_collect(struct line *l);
void back_collect(struct line *l);
void collect(struct line *l);
void settle(struct line *l);     /* until all that was said is there */

struct world *instance_start(void);
void instance_end(struct line *l);
void crash(struct line *l);      /* what of the last turn was published, is left to chance */
void drain(struct line *l);      /* the instance gives it up: what it had sent lies in front of that */
void take_over(struct line *l);  /* by a fresh instance */
/* Its two steps: tcp opens the flow with what it has (NULL: refused), http answers. */
struct fake_flow *offered(struct line *l, uint64_t request_id);
void http_replay(struct line *l);

#endif
