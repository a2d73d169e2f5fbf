/* SPDX-License-Identifier: Apache-2.0 */
/* One connection: what comes in, and how requests and the connection end. */
#include <stdlib.h>

#include "base/atomic.h"
#include "layers/http/http.h"

/* --- life --- */

static void write_late(struct sl_timer *t)
{
	struct http_conn *c = sl_container_of(t, struct http_conn, write_timer);

	c->http->inst->counters[SL_CNT_TIMEOUT]++;
	sl_http_conn_reset(c, SL_ERROR_TIMEOUT);
}

struct http_conn *sl_http_conn_new(struct http_layer *h)
{
	struct http_conn *c;

	if (sl_list_empty(&h->free_conns)) {
		c = malloc(sizeof(*c));
		if (!c)
			return NULL;
	} else {
		c = sl_container_of(h->free_conns.next, struct http_conn, node);
		sl_list_unlink(&c->node);
	}
	memset(c, 0, sizeof(*c));
	c->http = h;
	sl_list_init(&c->wait_node);
	sl_list_init(&c->token_node);
	sl_list_append(&h->conns, &c->node);
	sl_timer_init(&c->timer, sl_http_timer_fire);
	sl_timer_init(&c->write_timer, write_late);
	sl_timer_init(&c->orphan_timer, sl_http_orphan_fire);
	h->nb_conns++;
	h->inst->active_flows++;
	return c;
}

void sl_http_conn_free(struct http_conn *c)
{
	struct http_layer *h = c->http;

	sl_list_unlink(&c->wait_node);
	sl_timer_cancel(&c->timer);
	sl_timer_cancel(&c->write_timer);
	sl_answer_drop(&c->answer);
	sl_http_token_drop(c);
	sl_http_buf_put(h, &c->head);
	sl_http_buf_put(h, &c->msg);
	sl_http_buf_put(h, &c->rsp);
	sl_http_buf_put(h, &c->out);
	sl_list_unlink(&c->node);
	sl_list_append(&h->free_conns, &c->node);
	h->nb_conns--;
	h->inst->active_flows--;
}

void sl_http_conn_end(struct http_conn *c)
{
	if (!c->front)
		return;
	sl_http_back_drop(c, SL_ERROR_CLIENT);
	sl_trace_flow(c->front, SL_TRACE_DONE, 0);
	c->front->user = NULL;
	c->front = NULL;
	sl_http_conn_free(c);
}

void sl_http_conn_reset(struct http_conn *c, enum sl_request_status status)
{
	struct sl_flow *front = c->front;

	if (!front)
		return;
	sl_http_conn_end(c);
	sl_flow_reset(front, status);
}

void sl_http_conn_close(struct http_conn *c)
{
	if (!c->front || c->input == IN_CLOSED)
		return;
	c->input = IN_CLOSED;
	sl_http_buf_put(c->http, &c->head);
	sl_flow_fin(c->front);
	sl_http_timer_set(c);
	if (!c->in_data)
		sl_flow_resume(c->front);
}

void sl_http_conn_drain(struct http_conn *c)
{
	if (c->last)
		return;
	c->last = true;
	c->timer_for = T_NONE;   /* idle now: the shorter time counts */
	sl_http_timer_set(c);
}

/* --- time --- */

static uint32_t timeout_ms(const struct http_conn *c, enum http_timeout what)
{
	const struct sl_http_conf *conf = &c->http->conf;

	switch (what) {
	case T_IDLE:
		return c->last ? HTTP_DRAIN_IDLE_MS : conf->keepalive_timeout_ms;
	case T_HEAD:
		return conf->head_timeout_ms;
	case T_BODY:
		return conf->body_timeout_ms;
	case T_LINGER:
		return HTTP_LINGER_MS;
	default:
		return 0;
	}
}

/* What the client owes us now. A body that the next layer does not take is not the client's fault. */
static enum http_timeout timeout_for(const struct http_conn *c)
{
	switch (c->input) {
	case IN_HEAD:
		return c->head ? T_HEAD : T_IDLE;
	case IN_BODY:
		return !c->back || c->body_blocked ? T_NONE : T_BODY;
	case IN_DISCARD:
		return T_BODY;
	case IN_CLOSED:
		return T_LINGER;
	default:
		return T_NONE;
	}
}

/* (Re)arms the timer. Only the body's starts again with each piece: a head that trickles in must still be whole in
 * time. */
void sl_http_timer_set(struct http_conn *c)
{
	enum http_timeout what = timeout_for(c);
	uint32_t ms = timeout_ms(c, what);

	if (what == c->timer_for && what != T_BODY)
		return;
	c->timer_for = what;
	if (ms)
		sl_timer_arm(&c->http->inst->wheel, &c->timer, ms);
	else
		sl_timer_cancel(&c->timer);
}

void sl_http_timer_fire(struct sl_timer *t)
{
	struct http_conn *c = sl_container_of(t, struct http_conn, timer);
	enum http_timeout what = c->timer_for;

	c->timer_for = T_NONE;
	if (what == T_HEAD || (what == T_BODY && c->input == IN_BODY)) {
		sl_http_error(c, 408);
		return;
	}
	c->http->inst->counters[SL_CNT_TIMEOUT]++;
	if (what == T_LINGER)
		sl_http_conn_reset(c, SL_ERROR_TIMEOUT);
	else
		sl_http_conn_close(c);
}

/* --- input --- */

static void request_begin(struct http_conn *c)
{
	struct http_layer *h = c->http;
	const struct sl_http_conf *conf = &h->conf;
	struct sl_http_request r;
	int status;

	sl_timer_cancel(&c->timer);
	c->timer_for = T_NONE;
	c->req = (struct http_req){0};
	c->msg = sl_http_buf_get(h);
	status = !c->msg ? 503 : sl_http_request_parse(&h->parser, conf, c->head->data, c->head->len, c->msg->data,
						       &c->req);
	sl_http_buf_put(h, &c->head);
	if (status) {
		sl_http_error(c, status);
		return;
	}
	memcpy(&r, c->msg->data, sizeof(r));
	r.tls = c->tls;
	r.service = c->service;
	r.client_port = c->client_port;
	memcpy(r.client_addr, c->client_addr, sizeof(r.client_addr));
	memcpy(c->msg->data, &r, sizeof(r));
	c->msg->len = r.head_len;

	h->inst->requests++;
	c->nb_requests++;
	c->keep = c->req.keep && (!conf->max_requests || c->nb_requests < conf->max_requests);
	c->retried = c->body_sent = c->body_blocked = c->blank = false;
	c->request_id = sl_request_id(h->inst);
	sl_answer_begin(h->inst, &c->answer);
	sl_http_body_init(&c->body, c->req.body_len, conf->max_body_bytes);
	c->input = c->req.body_len ? IN_BODY : IN_HOLD;
	c->output = OUT_WAIT;
	sl_http_open(c);
}

/* A line of the head is whole: b->data[b->pos ... b->len). Returns a status, 0, or 1 at the end of the head. */
static int line_take(struct http_conn *c)
{
	struct http_buf *b = c->head;
	const uint8_t *line = b->data + b->pos;
	uint32_t len = b->len - b->pos;
	bool first = !b->pos;
	int status;

	if (len == 2 && line[0] == '\r' && line[1] == '\n') {
		if (!first)
			return 1;
		if (c->blank)
			return 400;
		c->blank = true;   /* RFC 9112 section 2.2: one empty line before the request line */
		sl_http_buf_put(c->http, &c->head);
		return 0;
	}
	status = sl_http_line_check(line, len, first);
	b->pos = b->len;
	return status;
}

/* Collects the head line by line into private memory: everything that decides is decided on that copy. */
static uint32_t head_take(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	struct http_buf *b = c->head ? c->head : (c->head = sl_http_buf_get(c->http));
	uint32_t room, n;
	uint8_t *at, *end;
	int status = 0;

	if (!b) {
		sl_http_conn_reset(c, SL_ERROR);
		return len;
	}
	room = c->http->conf.max_head_bytes - b->len;
	at = b->data + b->len;
	n = sl_min(len, room);
	end = memccpy(at, p, '\n', n);
	sl_copied_once();
	n = end ? (uint32_t)(end - at) : n;
	b->len += n;
	if (end)
		status = line_take(c);
	else if (!b->pos && !sl_http_token_ok((const char *)b->data, 1) && b->data[0] != '\r')
		status = 400;   /* no HTTP at all: a TLS client on a plain port, say */
	if (!status && n == room && c->head)
		status = b->pos ? 431 : 414;
	if (status == 1)
		request_begin(c);
	else if (status)
		sl_http_error(c, status);
	return n;
}

static uint32_t discard(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	uint32_t made;
	int64_t used = sl_http_body_decode(&c->body, p, len, NULL, UINT32_MAX, &made);

	if (used < 0 || c->discarded + used > HTTP_DISCARD_MAX) {
		sl_http_conn_close(c);
		return len;
	}
	c->discarded += (uint32_t)used;
	if (sl_http_body_ended(&c->body))
		c->input = IN_HEAD;
	return (uint32_t)used;
}

uint32_t sl_http_input(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	switch (c->input) {
	case IN_HEAD:
		return head_take(c, p, len);
	case IN_BODY:
		return sl_http_forward(c, p, len);
	case IN_DISCARD:
		return discard(c, p, len);
	case IN_CLOSED:
		return len;
	default:
		return 0;
	}
}

/* --- end of a request --- */

void sl_http_request_done(struct http_conn *c)
{
	struct http_layer *h = c->http;

	sl_answer_done(h->inst, &c->answer);
	sl_http_back_drop(c, SL_ERROR_CLIENT);
	sl_http_buf_put(h, &c->msg);
	sl_http_buf_put(h, &c->rsp);
	c->output = OUT_NONE;
	if (!c->keep || c->client_fin) {
		sl_http_conn_close(c);
	} else {
		c->discarded = 0;
		c->input = c->input == IN_BODY ? IN_DISCARD : IN_HEAD;
		sl_http_timer_set(c);
		if (!c->in_data)
			sl_flow_resume(c->front);
	}
	sl_http_waiters_serve(h);
}
