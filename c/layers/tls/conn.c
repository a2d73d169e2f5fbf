/* SPDX-License-Identifier: Apache-2.0 */
/* One TLS connection: what it can do. tls.c says when.
 *
 * What ends how (RFC 8446 section 6.1):
 *   close_notify from the client   FIN to http; the answer still goes out
 *   FIN from http                  close_notify, then FIN to tcp
 *   FIN from tcp, no close_notify  the back flow is reset: a cut message must not look like a whole one
 *   the client breaks TLS          alert, FIN to tcp; the back flow is reset
 *   either flow is reset           the other one is reset too: without close_notify the client sees the cut */
#include <stdlib.h>

#include <openssl/err.h>
#include <openssl/rand.h>

#include "layers/tls/tls.h"

static struct sl_instance *conn_inst(const struct sl_tls_conn *c)
{
	return c->tls->inst;
}

static void conn_free(struct sl_tls_conn *c)
{
	sl_timer_cancel(&c->timer);
	sl_answer_drop(&c->handshake);
	sl_list_unlink(&c->node);
	SSL_free(c->ssl);
	sl_tls_stream_free(c);
	OPENSSL_cleanse(c->client_secret, sizeof(c->client_secret));
	OPENSSL_cleanse(c->server_secret, sizeof(c->server_secret));
	if (c->taken)
		OPENSSL_cleanse(c->taken, sizeof(*c->taken));
	free(c->taken);
	c->tls->nb_conns--;
	conn_inst(c)->active_flows--;
	free(c);
}

void sl_tls_conn_enter(struct sl_tls_conn *c)
{
	c->depth++;
	ERR_clear_error();   /* SSL_get_error looks at the thread's queue too */
}

void sl_tls_conn_leave(struct sl_tls_conn *c)
{
	sl_tls_wire_flush(&c->wire, false);
	if (!--c->depth && !c->wire.flow && !c->back)
		conn_free(c);
}

void sl_tls_back_reset(struct sl_tls_conn *c, enum sl_request_status status)
{
	if (c->back)
		sl_flow_reset(c->back, status);
	c->back = NULL;
}

void sl_tls_conn_reset(struct sl_tls_conn *c, enum sl_request_status status)
{
	struct sl_flow *front = c->wire.flow;

	c->state = SL_TLS_CLOSED;
	sl_tls_wire_drop(&c->wire);
	if (front) {
		sl_trace_flow(front, SL_TRACE_DONE, 0);
		sl_flow_reset(front, status);
	}
	sl_tls_back_reset(c, status);
}

void sl_tls_conn_abort(struct sl_tls_conn *c, enum sl_request_status status)
{
	sl_tls_conn_enter(c);
	sl_tls_conn_reset(c, status);
	sl_tls_conn_leave(c);
}

void sl_tls_conn_finish(struct sl_tls_conn *c, uint32_t linger_ms)
{
	sl_timer_arm(&conn_inst(c)->wheel, &c->timer, linger_ms);
	sl_tls_wire_flush(&c->wire, true);
}

void sl_tls_conn_fail(struct sl_tls_conn *c)
{
	conn_inst(c)->counters[SL_CNT_CLIENT_ERROR]++;
	c->state = SL_TLS_CLOSED;
	sl_tls_back_reset(c, SL_ERROR_PROTOCOL);
	sl_tls_conn_finish(c, SL_TLS_ALERT_LINGER_MS);
}

void sl_tls_conn_shutdown(struct sl_tls_conn *c)
{
	int r;

	if (c->stream) {
		sl_tls_stream_shutdown(c);
		return;
	}
	r = SSL_shutdown(c->ssl);

	if (r < 0 && SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_WRITE)
		return;
	c->tx_closing = false;
	if (c->rx_closed || !c->back)
		c->state = SL_TLS_CLOSED;
	sl_tls_conn_finish(c, SL_TLS_LINGER_MS);
}

void sl_tls_conn_read(struct sl_tls_conn *c)
{
	while (c->state == SL_TLS_RUNNING && !c->rx_closed && c->back && c->wire.unread + c->wire.in_len) {
		uint32_t want = sl_min(c->wire.unread + c->wire.in_len, (uint32_t)SL_TLS_PIECE), len = 0, room;
		struct sl_buf buf;
		size_t n;
		int r = 1, err;

		room = sl_flow_reserve(c->back, want, &buf);
		if (!room)
			return;
		while (len < room && (r = SSL_read_ex(c->ssl, buf.data + len, room - len, &n)) == 1) {
			c->wire.unread = (uint32_t)SSL_pending(c->ssl);
			len += (uint32_t)n;
		}
		err = r == 1 ? SSL_ERROR_NONE : SSL_get_error(c->ssl, r);
		c->rx_closed = err == SSL_ERROR_ZERO_RETURN;
		conn_inst(c)->bytes_in += len;
		if (len)
			sl_flow_commit(c->back, &buf, len, c->rx_closed ? SL_F_FIN : 0);
		else
			sl_buf_free(c->back->edge, &buf);
		if (c->rx_closed && !len)
			sl_flow_fin(c->back);
		if (err == SSL_ERROR_WANT_READ || err == SSL_ERROR_WANT_WRITE)
			return;
		if (err && !c->rx_closed)
			sl_tls_conn_fail(c);
	}
}

/* Handshake done: the connection is handed on. */
static void back_open(struct sl_tls_conn *c)
{
	struct sl_instance *inst = conn_inst(c);
	struct sl_flow *front = c->wire.flow;
	struct sl_edge *e = sl_instance_next_edge(inst, c->open.service);
	uint32_t flags = front->traced ? SL_F_TRACE : 0;
	int err = -ENETUNREACH;

	if (e)
		err = sl_flow_open(e, front->request_id, &c->open, sizeof(c->open), flags, c, &c->back);
	if (err == -EAGAIN) {
		sl_timer_arm(&inst->wheel, &c->timer, 1);   /* the next slot of the wheel */
		return;
	}
	if (err) {
		/* nobody to answer: a reset is honest, an empty answer with a clean end would not be */
		sl_tls_conn_reset(c, SL_ERROR_REFUSED);
		return;
	}
	sl_timer_cancel(&c->timer);
	c->state = SL_TLS_RUNNING;
	sl_trace_flow(c->back, SL_TRACE_NEXT, 0);
	if (c->draining)
		sl_flow_drain(c->back);
	if (c->stream && c->stream->moves) {
		c->back->whole = true;
		sl_tls_state_offer(c);
		sl_flow_ack(front, c->wire.taken, 0);
		sl_tls_stream_serve(c);
		if (inst->draining)
			sl_flow_drain(front);
	} else {
		sl_flow_ack(front, SL_ACK_ALL, 0);
		if (inst->draining)
			sl_flow_drain(c->back);
	}
}

/* TLS 1.3: OpenSSL has done its part. */
static void stream_begin(struct sl_tls_conn *c)
{
	struct sl_tls *tls = c->tls;

	if (SSL_version(c->ssl) != TLS1_3_VERSION)
		return;
	if (!sl_tls_stream_new(c)) {
		sl_tls_conn_reset(c, SL_ERROR);
		return;
	}
	c->stream->moves = tls->has_pool && RAND_bytes(c->stream->token, SL_TOKEN_LEN) == 1;
	memcpy(c->open.token, c->stream->token, SL_TOKEN_LEN);
}

void sl_tls_conn_handshake(struct sl_tls_conn *c)
{
	int r = SSL_do_handshake(c->ssl), err;

	if (r == 1) {
		conn_inst(c)->counters[SL_CNT_HANDSHAKES]++;
		sl_answer_done(conn_inst(c), &c->handshake);
		if (SSL_session_reused(c->ssl))
			conn_inst(c)->counters[SL_CNT_RESUMED]++;
		sl_tls_negotiated(c->ssl, &c->open);
		c->wire.unread = 0;
		c->state = SL_TLS_OPENING;
		stream_begin(c);
		if (c->state == SL_TLS_OPENING)
			back_open(c);
		return;
	}
	err = SSL_get_error(c->ssl, r);
	if (err != SSL_ERROR_WANT_READ && err != SSL_ERROR_WANT_WRITE)
		sl_tls_conn_fail(c);
}

static void conn_timeout(struct sl_timer *t)
{
	struct sl_tls_conn *c = sl_container_of(t, struct sl_tls_conn, timer);
	struct sl_instance *inst = conn_inst(c);
	bool lingering = c->state == SL_TLS_RUNNING || c->state == SL_TLS_CLOSED;

	sl_tls_conn_enter(c);
	if (c->state == SL_TLS_OPENING && inst->wheel.now_ms < c->deadline_ms) {
		back_open(c);
		if (c->state == SL_TLS_RUNNING)
			sl_flow_resume(c->wire.flow);
	} else if (c->state == SL_TLS_RESUMING && !c->back && inst->wheel.now_ms < c->deadline_ms) {
		sl_tls_takeover_open(c);
	} else {
		inst->counters[SL_CNT_TIMEOUT] += !lingering;
		inst->counters[SL_CNT_MOVE_FAILED] += c->state == SL_TLS_RESUMING;
		sl_tls_conn_reset(c, SL_ERROR_TIMEOUT);
	}
	sl_tls_conn_leave(c);
}

struct sl_tls_conn *sl_tls_conn_new(struct sl_tls *tls, struct sl_flow *f, const struct sl_flow_open *open)
{
	struct sl_tls_conn *c = calloc(1, sizeof(*c));
	BIO *bio = NULL;

	if (!c)
		return NULL;
	c->tls = tls;
	c->wire.flow = f;
	if (open) {
		c->open = *open;
		c->ssl = SSL_new(tls->hosts[0].ctx);
		if (c->ssl)
			bio = sl_tls_bio_new(tls->bio_method, &c->wire);
		if (!bio) {
			SSL_free(c->ssl);
			free(c);
			return NULL;
		}
		SSL_set_bio(c->ssl, bio, bio);
		SSL_set_accept_state(c->ssl);
		SSL_set_app_data(c->ssl, c);
		sl_answer_begin(tls->inst, &c->handshake);
	}
	sl_timer_init(&c->timer, conn_timeout);
	sl_list_append(&tls->conns, &c->node);
	tls->nb_conns++;
	tls->inst->active_flows++;
	return c;
}
