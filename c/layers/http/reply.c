/* SPDX-License-Identifier: Apache-2.0 */
/* The answer on its way to the client: bytes that must go first (conn->out), then body bytes as far as the client
 * takes them. */
#include <time.h>

#include "base/atomic.h"
#include "layers/http/http.h"

struct seg {
	const void *p;
	uint32_t len;
};

enum { SEG_FIRST, SEG_SIZE, SEG_BODY, SEG_TAIL, SEGS };   /* in the order of sending */

static const char *date_now(struct http_layer *h)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME_COARSE, &t);   /* no system call: vDSO */
	if (t.tv_sec != h->date_s) {
		h->date_s = t.tv_sec;
		sl_http_date_write(t.tv_sec, h->date);
	}
	return h->date;
}

/* The client takes nothing for now: writable() or the write timer will tell. */
static void blocked(struct http_conn *c)
{
	struct http_layer *h = c->http;

	if (h->conf.body_timeout_ms && sl_list_empty(&c->write_timer.node))
		sl_timer_arm(&h->inst->wheel, &c->write_timer, h->conf.body_timeout_ms);
}

/* Sends the segments as one stream of bytes, in as few entries as possible. Returns the bytes sent. */
static uint32_t segs_send(struct http_conn *c, const struct seg *segs)
{
	uint32_t total = 0, done = 0, skip = 0;
	unsigned at = 0;

	for (unsigned i = 0; i < SEGS; i++)
		total += segs[i].len;
	while (done < total) {
		struct sl_buf buf;
		uint32_t room = sl_flow_reserve(c->front, total - done, &buf), fill = 0;

		if (!room) {
			blocked(c);
			break;
		}
		while (fill < room) {
			uint32_t n = sl_min(room - fill, segs[at].len - skip);

			if (n)
				memcpy(buf.data + fill, (const uint8_t *)segs[at].p + skip, n);
			fill += n;
			skip += n;
			if (skip == segs[at].len) {
				at++;
				skip = 0;
			}
		}
		sl_flow_commit(c->front, &buf, room, 0);
		sl_timer_cancel(&c->write_timer);
		done += room;
	}
	c->http->inst->bytes_out += done;
	return done;
}

bool sl_http_flush(struct http_conn *c)
{
	struct http_buf *b = c->out;

	if (b) {
		uint32_t n = sl_flow_write(c->front, b->data + b->pos, b->len - b->pos);

		c->http->inst->bytes_out += n;
		b->pos += n;
		if (n)
			sl_timer_cancel(&c->write_timer);
		if (b->pos < b->len) {
			blocked(c);
			return false;
		}
		sl_http_buf_put(c->http, &c->out);
	}
	return true;
}

bool sl_http_out_add(struct http_conn *c, const void *p, uint32_t len)
{
	if (!len)
		return true;
	if (!c->out)
		c->out = sl_http_buf_get(c->http);
	if (!c->out || len > sizeof(c->out->data) - c->out->len) {
		sl_http_conn_reset(c, SL_ERROR);
		return false;
	}
	memcpy(c->out->data + c->out->len, p, len);
	c->out->len += len;
	return true;
}

/* All of the answer is in c->out or sent. */
static void finish(struct http_conn *c)
{
	c->output = OUT_LAST;
	if (sl_http_flush(c))
		sl_http_request_done(c);
}

static void error_count(struct http_conn *c, int status)
{
	uint64_t *counters = c->http->inst->counters;

	if (status == 408)
		counters[SL_CNT_TIMEOUT]++;
	else if (status < 500 || status == 501 || status == 505)
		counters[SL_CNT_CLIENT_ERROR]++;
}

void sl_http_error(struct http_conn *c, int status)
{
	struct http_layer *h = c->http;
	struct http_reply r = {.status = (uint16_t)status, .head_only = c->req.method == SL_HTTP_HEAD,
			       .http_1_0 = !c->req.version_minor};
	uint32_t len;

	error_count(c, status);
	if (c->output > OUT_WAIT) {   /* another answer has begun: cutting it off is all that is left */
		sl_http_conn_reset(c, status == 408 ? SL_ERROR_TIMEOUT : SL_ERROR_PROTOCOL);
		return;
	}
	sl_http_back_drop(c, status == 408 ? SL_ERROR_TIMEOUT : SL_ERROR_CLIENT);
	/* only a request that was taken whole and was not to blame leaves the connection usable */
	c->keep = c->keep && status > 501 && status < 505 && c->input == IN_HOLD && !c->client_fin &&
		  !c->last;
	r.keep = c->keep;
	if (c->input == IN_HEAD)
		c->input = IN_HOLD;
	len = sl_http_error_write(&r, date_now(h), h->line, sizeof(h->line));
	if (sl_http_out_add(c, h->line, len))
		finish(c);
}

/* --- the next layer's answer --- */

/* Keeps what of a segment was not sent, the first `sent` bytes of all segments being sent and `before` of them
 * belonging to others. */
static bool seg_keep(struct http_conn *c, const struct seg *seg, uint32_t before, uint32_t sent)
{
	uint32_t from = sent > before ? sl_min(sent - before, seg->len) : 0;

	return from == seg->len || sl_http_out_add(c, (const uint8_t *)seg->p + from, seg->len - from);
}

/* What was sent of the segments decides what is owed before the next byte of body. Returns the bytes of body that
 * were taken. */
static uint32_t body_account(struct http_conn *c, const struct seg *segs, uint32_t sent)
{
	uint32_t ahead = segs[SEG_FIRST].len + segs[SEG_SIZE].len, body;

	if (!seg_keep(c, &segs[SEG_FIRST], 0, sent) || !seg_keep(c, &segs[SEG_SIZE], segs[SEG_FIRST].len, sent))
		return 0;
	body = sent > ahead ? sl_min(sent - ahead, segs[SEG_BODY].len) : 0;
	if (body == segs[SEG_BODY].len && !seg_keep(c, &segs[SEG_TAIL], ahead + body, sent))
		return 0;
	if (c->resp_left != UINT64_MAX)
		c->resp_left -= body;
	if (c->resp_chunked)
		c->chunk_left -= body;
	return body;
}

static uint32_t size_write(char *text, uint32_t size)
{
	uint32_t n = 0;

	for (int shift = 28; shift >= 0; shift -= 4) {
		unsigned digit = size >> shift & 15;

		if (digit || n || !shift)
			text[n++] = "0123456789abcdef"[digit];
	}
	memcpy(text + n, "\r\n", 2);
	return n + 2;
}

/* More than was announced: the client gets what was announced, then the connection ends. */
static void excess_take(struct http_conn *c)
{
	if (c->resp_excess)
		return;
	c->resp_excess = true;
	c->keep = false;
	c->http->inst->counters[SL_CNT_BAD_MESSAGE]++;
}

/* Sends first[first_len], which is always disposed of, then as much of the body p[len] as the client takes. Returns
 * the bytes of p taken. */
static uint32_t body_send(struct http_conn *c, const uint8_t *first, uint32_t first_len, const uint8_t *p, uint32_t len)
{
	uint32_t body = (uint32_t)sl_min((uint64_t)len, c->resp_left), taken;
	struct seg segs[SEGS] = {[SEG_FIRST] = {first, first_len}};
	char size[12];

	if (c->resp_chunked && body) {
		if (!c->chunk_left) {   /* all that is here is one chunk: what is not taken now will be shown again */
			c->chunk_left = body;
			segs[SEG_SIZE] = (struct seg){size, size_write(size, body)};
		}
		body = (uint32_t)sl_min((uint64_t)body, c->chunk_left);
		if (body == c->chunk_left)
			segs[SEG_TAIL] = (struct seg){"\r\n", 2};
	}
	segs[SEG_BODY] = (struct seg){p, body};
	taken = body_account(c, segs, segs_send(c, segs));
	if (taken < len && !c->resp_left) {
		excess_take(c);
		taken = len;
	}
	return taken;
}

/* Collects the head into private memory. Returns the bytes taken, *whole when it is complete. */
static uint32_t head_gather(struct http_conn *c, const uint8_t *p, uint32_t len, bool *whole)
{
	struct sl_http_response r = {.head_len = sizeof(r)};
	uint32_t taken = 0;

	if (!c->rsp)
		c->rsp = sl_http_buf_get(c->http);
	*whole = false;
	for (;;) {
		struct http_buf *b = c->rsp;
		uint32_t n;

		if (b && b->len >= sizeof(r))
			memcpy(&r, b->data, sizeof(r));
		if (!b || r.head_len < sizeof(r) || r.head_len > SL_HTTP_HEAD_MAX) {
			c->http->inst->counters[SL_CNT_BAD_MESSAGE]++;
			sl_http_error(c, 502);
			return len;
		}
		*whole = b->len >= sizeof(r) && b->len == r.head_len;
		n = sl_min(len - taken, r.head_len - b->len);
		if (!n)
			return taken;
		memcpy(b->data + b->len, p + taken, n);
		sl_copied_once();
		b->len += n;
		taken += n;
	}
}

/* The answer's head is whole: decides the framing and sends it with the body bytes that came along. */
static uint32_t begin(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	struct http_layer *h = c->http;
	/* a client that waits for a 100 that never came may or may not send its body; a long rest of it is not
	 * worth reading */
	bool body_unsure = c->input == IN_BODY &&
			   (c->req.expect || (c->back->rx_fin && c->body.left > HTTP_DISCARD_MAX));
	struct http_reply r = {.head_only = c->req.method == SL_HTTP_HEAD, .http_1_0 = !c->req.version_minor,
			       .keep = c->keep && !c->client_fin && !c->last && !body_unsure};
	int head_len = sl_http_response_write(c->rsp->data, date_now(h), &r, h->line, sizeof(h->line));
	uint32_t taken;

	sl_http_buf_put(h, &c->rsp);
	if (head_len < 0) {
		h->inst->counters[SL_CNT_BAD_MESSAGE]++;
		sl_http_error(c, 502);
		return len;
	}
	sl_http_buf_put(h, &c->msg);
	c->output = OUT_BODY;
	c->req.expect = false;
	c->keep = r.keep;
	c->resp_left = r.body_left;
	c->resp_chunked = r.chunked;
	c->chunk_left = 0;
	c->resp_excess = false;
	taken = body_send(c, h->line, (uint32_t)head_len, p, len);
	if (c->back)
		sl_trace_flow(c->back, SL_TRACE_OUT, c->front->request_id);
	return taken;
}

uint32_t sl_http_reply(struct http_conn *c, const uint8_t *p, uint32_t len)
{
	uint32_t taken;
	bool whole;

	if (!sl_http_flush(c))
		return 0;
	if (c->output == OUT_BODY)
		return body_send(c, NULL, 0, p, len);
	if (c->output != OUT_WAIT)
		return len;
	if (!c->rsp)
		sl_trace_flow(c->back, SL_TRACE_BACK, c->front->request_id);
	taken = head_gather(c, p, len, &whole);
	return whole ? taken + begin(c, p + taken, len - taken) : taken;
}

void sl_http_reply_end(struct http_conn *c)
{
	if (c->output == OUT_WAIT) {   /* the head is missing */
		c->http->inst->counters[SL_CNT_BAD_MESSAGE]++;
		sl_http_error(c, 502);
		return;
	}
	if (c->resp_left && c->resp_left != UINT64_MAX) {   /* short: the client must see that, so no FIN */
		c->http->inst->counters[SL_CNT_BAD_MESSAGE]++;
		sl_http_conn_reset(c, SL_ERROR);
		return;
	}
	if (c->resp_chunked && !sl_http_out_add(c, "0\r\n\r\n", 5))
		return;
	finish(c);
}
