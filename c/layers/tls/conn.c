/* SPDX-License-Identifier: Apache-2.0 */
/* One TLS connection: the callbacks of its two flows. Each callback enters, moves what can be moved, and leaves; leaving sends the
 * gathered ciphertext and frees the connection if both flows are over.
 *
 * What ends how (RFC 8446 section 6.1):
 *   close_notify from the client   FIN to http; the answer still goes out
 *   FIN from http                  close_notify, then FIN to tcp
 *   FIN from tcp, no close_notify  the back flow is reset: a cut message must not look like a whole one
 *   the client breaks TLS          alert, FIN to tcp; the back flow is reset
 *   either flow is reset           the other one is reset too: without close_notify the client sees the cut */
#include <stdlib.h>

#include <openssl/err.h>

#include "layers/tls/tls.h"

static struct sl_instance *conn_inst(const struct sl_tls_conn *c)
{
	return c->tls->inst;
}

static void conn_free(struct sl_tls_conn *c)
{
	sl_timer_cancel(&c->timer);
	sl_list_unlink(&c->node);
	SSL_free(c->ssl);
	c->tls->nb_conns--;
	conn_inst(c)->active_flows--;
	free(c);
}

static void conn_enter(struct sl_tls_conn *c)
{
	c->depth++;
	ERR_clear_error();   /* SSL_get_error looks at the thread's queue too */
}

static void conn_leave(struct sl_tls_conn *c)
{
	sl_tls_wire_flush(&c->wire, false);
	if (!--c->depth && !c->wire.flow && !c->back)
		conn_free(c);
}

static void back_reset(struct sl_tls_conn *c, enum sl_request_status status)
{
	if (c->back)
		sl_flow_reset(c->back, status);
	c->back = NULL;
}

/* To be called inside a callback. */
static void conn_reset(struct sl_tls_conn *c, enum sl_request_status status)
{
	struct sl_flow *front = c->wire.flow;

	c->state = SL_TLS_CLOSED;
	sl_tls_wire_drop(&c->wire);
	if (front) {
		sl_trace_flow(front, SL_TRACE_DONE, 0);
		sl_flow_reset(front, status);
	}
	back_reset(c, status);
}

void sl_tls_conn_abort(struct sl_tls_conn *c, enum sl_request_status status)
{
	conn_enter(c);
	conn_reset(c, status);
	conn_leave(c);
}

/* Our direction ends here; if the client's does not, a reset follows. */
static void conn_finish(struct sl_tls_conn *c, uint32_t linger_ms)
{
	sl_timer_arm(&conn_inst(c)->wheel, &c->timer, linger_ms);
	sl_tls_wire_flush(&c->wire, true);
}

/* The client broke TLS. OpenSSL has written the alert already. */
static void conn_fail(struct sl_tls_conn *c)
{
	conn_inst(c)->counters[SL_CNT_CLIENT_ERROR]++;
	c->state = SL_TLS_CLOSED;
	back_reset(c, SL_ERROR_PROTOCOL);
	conn_finish(c, SL_TLS_ALERT_LINGER_MS);
}

/* Sends close_notify and FIN; again from writable() if there is no room. */
static void conn_shutdown(struct sl_tls_conn *c)
{
	int r = SSL_shutdown(c->ssl);

	if (r < 0 && SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_WRITE)
		return;
	c->tx_closing = false;
	if (c->rx_closed || !c->back)
		c->state = SL_TLS_CLOSED;
	conn_finish(c, SL_TLS_LINGER_MS);
}

/* SSL_read into slots of the back flow until there is no ciphertext or no room. */
static void conn_read(struct sl_tls_conn *c)
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
			conn_fail(c);
	}
}

/* Handshake done: the connection is handed on. */
static void back_open(struct sl_tls_conn *c)
{
	struct sl_instance *inst = conn_inst(c);
	struct sl_flow *front = c->wire.flow;
	struct sl_edge *e = sl_instance_next_edge(inst, c->open.service);
	int err = e ? sl_flow_open(e, front->request_id, &c->open, sizeof(c->open), front->traced ? SL_F_TRACE : 0, c, &c->back)
		    : -ENETUNREACH;

	if (err == -EAGAIN) {
		sl_timer_arm(&inst->wheel, &c->timer, 1);   /* the next slot of the wheel */
		return;
	}
	if (err) {
		/* nobody to answer: a reset is honest, an empty answer with a clean end would not be */
		conn_reset(c, SL_ERROR_REFUSED);
		return;
	}
	sl_timer_cancel(&c->timer);
	c->state = SL_TLS_RUNNING;
	sl_trace_flow(c->back, SL_TRACE_NEXT, 0);
}

static void open_complete(struct sl_tls_conn *c)
{
	const char *name = SSL_get_servername(c->ssl, TLSEXT_NAMETYPE_host_name);
	const unsigned char *alpn;
	unsigned len;

	c->open.tls_version = (uint8_t)SSL_version(c->ssl);   /* 0x0303, 0x0304 */
	SSL_get0_alpn_selected(c->ssl, &alpn, &len);
	c->open.alpn = len == 8 ? SL_ALPN_HTTP_1_1 : len == 2 ? SL_ALPN_H2 : SL_ALPN_NONE;
	c->open.sni_len = (uint8_t)(name ? strnlen(name, sizeof(c->open.sni)) : 0);
	memset(c->open.sni, 0, sizeof(c->open.sni));
	if (name)
		memcpy(c->open.sni, name, c->open.sni_len);
}

static void conn_handshake(struct sl_tls_conn *c)
{
	int r = SSL_do_handshake(c->ssl), err;

	if (r == 1) {
		conn_inst(c)->counters[SL_CNT_HANDSHAKES]++;
		if (SSL_session_reused(c->ssl))
			conn_inst(c)->counters[SL_CNT_RESUMED]++;
		open_complete(c);
		c->wire.unread = 0;
		c->state = SL_TLS_OPENING;
		back_open(c);
		return;
	}
	err = SSL_get_error(c->ssl, r);
	if (err != SSL_ERROR_WANT_READ && err != SSL_ERROR_WANT_WRITE)
		conn_fail(c);
}

static void conn_timeout(struct sl_timer *t)
{
	struct sl_tls_conn *c = sl_container_of(t, struct sl_tls_conn, timer);
	struct sl_instance *inst = conn_inst(c);
	bool lingering = c->state == SL_TLS_RUNNING || c->state == SL_TLS_CLOSED;

	conn_enter(c);
	if (c->state == SL_TLS_OPENING && inst->wheel.now_ms < c->deadline_ms) {
		back_open(c);
		if (c->state == SL_TLS_RUNNING)
			sl_flow_resume(c->wire.flow);
	} else {
		inst->counters[SL_CNT_TIMEOUT] += !lingering;
		conn_reset(c, SL_ERROR_TIMEOUT);
	}
	conn_leave(c);
}

static struct sl_tls_conn *conn_new(struct sl_tls *tls, struct sl_flow *f, const struct sl_flow_open *open)
{
	struct sl_tls_conn *c = calloc(1, sizeof(*c));
	BIO *bio = NULL;

	if (!c)
		return NULL;
	c->tls = tls;
	c->wire.flow = f;
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
	sl_timer_init(&c->timer, conn_timeout);
	sl_list_append(&tls->conns, &c->node);
	tls->nb_conns++;
	tls->inst->active_flows++;
	return c;
}

static int front_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	struct sl_instance *inst = sl_flow_instance(f);
	struct sl_tls *tls = inst->layer_state;
	const struct sl_flow_open *open = msg;
	struct sl_tls_conn *c;

	if (len != sizeof(*open) || !sl_instance_next_edge(inst, open->service)) {
		inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_PROTOCOL;
	}
	if (fin)   /* left before saying anything */
		return -SL_ERROR_CLIENT;
	c = inst->draining || tls->nb_conns >= tls->conf.max_connections ? NULL : conn_new(tls, f, open);
	if (!c)
		return -SL_ERROR_REFUSED;
	f->user = c;
	inst->requests++;
	c->deadline_ms = inst->wheel.now_ms + tls->conf.handshake_timeout_ms;
	if (tls->conf.handshake_timeout_ms)
		sl_timer_arm(&inst->wheel, &c->timer, tls->conf.handshake_timeout_ms);
	sl_trace_flow(f, SL_TRACE_IN, 0);
	return 0;
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct sl_tls_conn *c = f->user;
	uint32_t rest;

	if (c->state == SL_TLS_CLOSED || c->rx_closed)
		return len;
	conn_enter(c);
	c->wire.in = p;
	c->wire.in_len = len;
	if (c->state == SL_TLS_HANDSHAKE)
		conn_handshake(c);
	conn_read(c);
	rest = c->state == SL_TLS_CLOSED || c->rx_closed ? 0 : c->wire.in_len;
	c->wire.in = NULL;
	c->wire.in_len = 0;
	conn_leave(c);
	return len - rest;
}

static void front_fin(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	if (c->state == SL_TLS_CLOSED || (c->state == SL_TLS_RUNNING && c->rx_closed))
		return;
	conn_enter(c);
	if (f->tx_fin) {
		/* http had its say and the client its close_notify; many clients just leave then */
		c->state = SL_TLS_CLOSED;
		back_reset(c, SL_ERROR_CLIENT);
	} else {
		SSL_shutdown(c->ssl);   /* a courtesy: the client may still listen */
		conn_fail(c);
	}
	conn_leave(c);
}

static void front_writable(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	conn_enter(c);
	if (c->state == SL_TLS_HANDSHAKE)
		conn_handshake(c);
	if (c->tx_closing)
		conn_shutdown(c);
	conn_read(c);   /* it may have wanted to write: an answer to KeyUpdate */
	if (c->back)
		sl_flow_resume(c->back);
	if (c->wire.flow)
		sl_flow_resume(c->wire.flow);
	conn_leave(c);
}

static void front_over(struct sl_flow *f, enum sl_request_status status)
{
	struct sl_tls_conn *c = f->user;

	conn_enter(c);
	c->state = SL_TLS_CLOSED;
	sl_trace_flow(f, SL_TRACE_DONE, 0);
	sl_tls_wire_drop(&c->wire);
	/* both FINs on both flows: the back flow's own over() is on its way */
	if (c->back && !(c->back->tx_fin && c->back->rx_fin))
		back_reset(c, status == SL_COMPLETED ? SL_ERROR_CLIENT : status);
	conn_leave(c);
}

static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct sl_tls_conn *c = f->user;
	uint64_t before = c->wire.sent;
	uint32_t done = 0;
	size_t n;
	int r;

	if (!c->answered)
		sl_trace_flow(f, SL_TRACE_BACK, 0);
	conn_enter(c);
	c->wire.expect = len + (len / SL_TLS_PIECE + 1) * SL_TLS_RECORD_EXTRA;
	while (done < len) {
		/* copied into OpenSSL's buffer before it is encrypted, so the sender can not change it underneath */
		r = SSL_write_ex(c->ssl, p + done, len - done, &n);
		if (r != 1) {
			/* no room: the begun record stays in OpenSSL, and the same bytes are shown again */
			if (SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_WRITE)
				break;
			conn_fail(c);
			done = len;
			break;
		}
		done += (uint32_t)n;
		conn_inst(c)->bytes_out += n;
	}
	sl_tls_wire_flush(&c->wire, false);
	if (!c->answered && c->wire.flow && c->wire.sent != before) {
		c->answered = true;
		sl_trace_flow(c->wire.flow, SL_TRACE_OUT, 0);
	}
	conn_leave(c);
	return done;
}

static void back_fin(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	conn_enter(c);
	c->tx_closing = true;
	conn_shutdown(c);
	conn_leave(c);
}

static void back_writable(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	conn_enter(c);
	conn_read(c);   /* what OpenSSL still has */
	if (c->wire.flow)
		sl_flow_resume(c->wire.flow);
	conn_leave(c);
}

static void back_over(struct sl_flow *f, enum sl_request_status status)
{
	struct sl_tls_conn *c = f->user;

	conn_enter(c);
	c->back = NULL;
	if (status != SL_COMPLETED && c->wire.flow && !c->wire.flow->tx_fin)
		conn_reset(c, status);
	else if (c->wire.flow && c->wire.flow->tx_fin)
		c->state = SL_TLS_CLOSED;
	conn_leave(c);
}

const struct sl_flow_ops sl_tls_front = {
	.open = front_open,
	.data = front_data,
	.fin = front_fin,
	.writable = front_writable,
	.over = front_over,
};

const struct sl_flow_ops sl_tls_back = {
	.data = back_data,
	.fin = back_fin,
	.writable = back_writable,
	.over = back_over,
};
