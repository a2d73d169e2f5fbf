/* SPDX-License-Identifier: Apache-2.0 */
/* The request on its way to the next layer: one flow for each. */
#include "layers/http/http.h"

void sl_http_back_drop(struct http_conn *c, enum sl_request_status status)
{
	struct sl_flow *back = c->back;

	sl_list_unlink(&c->wait_node);
	if (!back)
		return;
	sl_trace_flow(back, SL_TRACE_DONE, c->front ? c->front->request_id : 0);
	back->user = NULL;   /* its over() may still come */
	c->back = NULL;
	if (!back->tx_fin || !back->rx_fin || sl_flow_backlog(back))
		sl_flow_reset(back, status);
}

/* --- opening --- */

static bool traced(const struct http_conn *c)
{
	const struct sl_instance *inst = c->http->inst;

	return c->front->traced || (inst->trace_every && inst->requests % inst->trace_every == 0);
}

/* No slot, ring entry or flow index: tried again at each event and by the timer, in the order of waiting. */
static void wait_for_slot(struct http_conn *c)
{
	struct http_layer *h = c->http;

	if (sl_list_empty(&c->wait_node))
		sl_list_append(&h->waiters, &c->wait_node);
	if (sl_list_empty(&h->retry_timer.node))
		sl_timer_arm(&h->inst->wheel, &h->retry_timer, HTTP_RETRY_MS);
}

/* Returns false if it has to wait. */
static bool open_try(struct http_conn *c)
{
	struct sl_edge *e = sl_instance_next_edge(c->http->inst, c->service);
	uint32_t flags = (traced(c) ? SL_F_TRACE : 0) | (c->req.body_len ? 0 : SL_F_FIN);
	int err = e ? sl_flow_open(e, c->request_id, c->msg->data, c->msg->len, flags, c, &c->back) : -ENETUNREACH;

	if (err == -EAGAIN)
		return false;
	if (err) {
		c->back = NULL;
		sl_http_error(c, err == -ENETUNREACH ? 503 : 502);
		return true;
	}
	sl_trace_flow(c->back, SL_TRACE_IN, c->front->request_id);
	sl_trace_flow(c->back, SL_TRACE_NEXT, c->front->request_id);
	return true;
}

/* It is open, later than in data() of the front flow: the body may be waiting, or the client for us. */
static void opened(struct http_conn *c)
{
	if (!c->back || c->in_data)
		return;
	if (sl_flow_backlog(c->front))
		sl_flow_resume(c->front);
	else
		sl_http_expect(c);
}

void sl_http_open(struct http_conn *c)
{
	/* who came first is served first */
	if ((!sl_list_empty(&c->http->waiters) && !c->http->serving_waiters) || !open_try(c))
		wait_for_slot(c);
}

void sl_http_waiters_serve(struct http_layer *h)
{
	if (h->serving_waiters || sl_list_empty(&h->waiters))
		return;
	h->serving_waiters = true;
	while (!sl_list_empty(&h->waiters)) {
		struct http_conn *c = sl_container_of(h->waiters.next, struct http_conn, wait_node);

		sl_list_unlink(&c->wait_node);
		if (!open_try(c)) {
			sl_list_append(h->waiters.next, &c->wait_node);   /* in front again */
			break;
		}
		opened(c);
	}
	h->serving_waiters = false;
}

void sl_http_retry_fire(struct sl_timer *t)
{
	struct http_layer *h = sl_container_of(t, struct http_layer, retry_timer);

	sl_http_waiters_serve(h);
	if (!sl_list_empty(&h->waiters))
		sl_timer_arm(&h->inst->wheel, t, HTTP_RETRY_MS);
}

void sl_http_expect(struct http_conn *c)
{
	static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";

	if (!c->front || !c->req.expect || !c->back || c->input != IN_BODY || c->output != OUT_WAIT)
		return;
	c->req.expect = false;
	if (sl_http_out_add(c, text, sizeof(text) - 1))
		sl_http_flush(c);
}

/* --- body --- */

uint32_t sl_http_forward(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	struct sl_buf buf = {0};
	uint32_t room, made, flags;
	int64_t used, more;

	c->req.expect = false;   /* the client did not wait for it */
	c->body_blocked = true;
	if (!c->back)
		return 0;
	/* framing first: so that a slot is only taken when there is a byte to put into it */
	used = sl_http_body_decode(&c->body, p, len, NULL, 0, &made);
	if (used >= 0 && used < len && sl_http_body_in_data(&c->body)) {
		room = sl_flow_reserve(c->back, len - (uint32_t)used, &buf);
		if (!room)
			return (uint32_t)used;
		more = sl_http_body_decode(&c->body, p + used, len - (uint32_t)used, buf.data, room, &made);
		flags = more >= 0 && sl_http_body_ended(&c->body) ? SL_F_FIN : 0;
		sl_flow_commit(c->back, &buf, made, flags);
		c->body_sent = true;
		used = more < 0 ? more : used + more;
	}
	c->body_blocked = false;
	if (used < 0) {
		sl_http_error(c, (int)-used);
		return len;
	}
	if (sl_http_body_ended(&c->body)) {
		if (!c->back->tx_fin)
			sl_flow_fin(c->back);
		c->input = IN_HOLD;
	}
	return (uint32_t)used;
}

/* --- callbacks --- */

static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct http_conn *c = f->user;

	return c ? sl_http_reply(c, p, len) : len;
}

static void back_fin(struct sl_flow *f)
{
	struct http_conn *c = f->user;

	if (c)
		sl_http_reply_end(c);
}

static void back_writable(struct sl_flow *f)
{
	struct http_conn *c = f->user;

	if (c)
		sl_flow_resume(c->front);
}

/* Nothing of the answer came, and no second try can do harm: nothing was done, or doing it again is the same as
 * doing it once. */
static bool may_retry(const struct http_conn *c, const struct sl_flow *f, enum sl_request_status status)
{
	bool undone = f->unseen || status == SL_ERROR_REFUSED || status == SL_ERROR_STALE;

	return !c->retried && c->msg && !c->body_sent &&
	       (undone || (c->req.idempotent && status == SL_ERROR_PEER_GONE));
}

static void lost_before_answer(struct http_conn *c, struct sl_flow *f, enum sl_request_status status)
{
	struct http_layer *h = c->http;

	sl_http_buf_put(h, &c->rsp);
	if (may_retry(c, f, status)) {
		c->retried = true;
		h->inst->counters[SL_CNT_RETRIED]++;
		sl_http_open(c);
		opened(c);
		return;
	}
	sl_http_error(c, status == SL_ERROR_REFUSED ? 503 : status == SL_ERROR_TIMEOUT ? 504 : 502);
}

static void back_over(struct sl_flow *f, enum sl_request_status status)
{
	struct http_conn *c = f->user;

	if (!c || c->back != f)
		return;
	sl_trace_flow(f, SL_TRACE_DONE, c->front->request_id);
	c->back = NULL;
	f->user = NULL;
	if (c->output == OUT_WAIT)
		lost_before_answer(c, f, status);
	else if (c->output == OUT_BODY && !c->resp_left && !c->resp_chunked)
		sl_http_reply_end(c);   /* all that was announced is here */
	else if (c->output == OUT_BODY)
		sl_http_conn_reset(c, status);
}

const struct sl_flow_ops sl_http_back_ops = {
	.data = back_data,
	.fin = back_fin,
	.writable = back_writable,
	.over = back_over,
};
