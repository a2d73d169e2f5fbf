/* SPDX-License-Identifier: Apache-2.0 */
/* A TLS 1.3 connection after its handshake, on our own record layer. Why it acknowledges and announces as it does: the
 * invariants in move.h. */
#include <stdlib.h>

#include "layers/tls/tls.h"

enum {
	UPDATE_LEN = 5,              /* KeyUpdate as a handshake message, RFC 8446 section 4.6.3 */
	KEY_UPDATE = 24,
	ACK_NOW = SL_FLOW_WINDOW / 4,   /* bytes that an end keeps for us, and that it soon could not send more for */
	SEQ_MAX = 1 << 23,           /* records under one key: below the bound of section 5.5 for AES-GCM */
};

uint64_t sl_tls_rx_mark(const struct sl_tls_stream *s)
{
	return sl_mark(s->rx.gen, s->rx.seq);
}

uint64_t sl_tls_tx_mark(const struct sl_tls_stream *s)
{
	return sl_mark(s->tx.gen, s->tx.seq - (s->tx.gen ? 0 : s->tx_first));
}

/* --- life --- */

bool sl_tls_stream_new(struct sl_tls_conn *c)
{
	struct sl_tls *tls = c->tls;
	const SSL_CIPHER *cipher = c->ssl ? SSL_get_current_cipher(c->ssl) : NULL;
	const struct sl_suite *suite = cipher ? sl_suite_find(SSL_CIPHER_get_protocol_id(cipher)) : NULL;
	struct sl_tls_stream *s = suite ? calloc(1, sizeof(*s)) : NULL;

	if (!s)
		return false;
	c->stream = s;
	s->conn = c;
	sl_list_init(&s->ack_node);
	s->tx_first = c->nb_tickets;
	if (sl_half_set(&s->rx, &tls->crypto, suite, c->client_secret, 0, false) ||
	    sl_half_set(&s->tx, &tls->crypto, suite, c->server_secret, 0, true))
		return false;
	s->tx.seq = s->tx_first;
	OPENSSL_cleanse(c->client_secret, sizeof(c->client_secret));
	OPENSSL_cleanse(c->server_secret, sizeof(c->server_secret));
	sl_tls_wire_flush(&c->wire, false);
	SSL_free(c->ssl);
	c->ssl = NULL;
	return true;
}

void sl_tls_stream_free(struct sl_tls_conn *c)
{
	struct sl_tls_stream *s = c->stream;

	if (!s)
		return;
	sl_list_unlink(&s->ack_node);
	sl_half_wipe(&s->rx);
	sl_half_wipe(&s->tx);
	free(s->part);
	free(s);
	c->stream = NULL;
}

/* --- to the client --- */

/* Sends one record. False: no room, writable() follows. */
static bool record_send(struct sl_tls_conn *c, uint8_t type, const uint8_t *p, uint32_t len, uint32_t flags)
{
	struct sl_tls_stream *s = c->stream;
	struct sl_flow *front = c->wire.flow;
	struct sl_buf buf;

	if (!front || front->tx_fin)
		return true;   /* nobody to send it to */
	if (!sl_flow_reserve_whole(front, len + SL_RECORD_EXTRA, &buf))
		return false;
	if (!sl_record_seal(&s->tx, type, p, len, c->tls->cipher)) {
		sl_buf_free(front->edge, &buf);
		sl_tls_conn_reset(c, SL_ERROR);
		return true;
	}
	memcpy(buf.data, c->tls->cipher, len + SL_RECORD_EXTRA);
	front->mark = sl_tls_tx_mark(s);
	c->wire.sent += len + SL_RECORD_EXTRA;
	sl_flow_commit(front, &buf, len + SL_RECORD_EXTRA, flags);
	return true;
}

static void serve_later(struct sl_tls_conn *c)
{
	struct sl_tls *tls = c->tls;

	if (sl_list_empty(&c->stream->ack_node))
		sl_list_append(&tls->acks, &c->stream->ack_node);
	if (sl_list_empty(&tls->ack_timer.node))
		sl_timer_arm(&tls->inst->wheel, &tls->ack_timer, 1);
}

/* Tells http what the next record is. All in front of it must be with tcp, and acknowledged, before. */
static bool announce(struct sl_tls_conn *c, uint64_t what)
{
	struct sl_tls_stream *s = c->stream;

	if (!s->moves || !c->back) {
		s->announced = what;
		return true;
	}
	if (!s->announced && what == SL_MARK_UPDATE && (s->tx_unacked || (c->wire.flow && !sl_flow_published(c->wire.flow))))
		return false;
	if (s->announced != what) {
		s->announced = what;
		sl_flow_ack(c->back, 0, sl_tls_tx_mark(s) | what);
	}
	return sl_flow_delivered(c->back);
}

static void update_serve(struct sl_tls_conn *c)
{
	static const uint8_t update[UPDATE_LEN] = {KEY_UPDATE, 0, 0, 1, 0};
	struct sl_tls_stream *s = c->stream;
	uint64_t next = sl_mark((uint16_t)(s->tx.gen + 1), 0);
	uint64_t before = s->tx.seq;

	/* our predecessor may have used the numbers of what is sent again: those must stay what they were */
	if (c->state != SL_TLS_RUNNING || (!s->announced && (s->replay_left || s->fin_ahead)) || !announce(c, SL_MARK_UPDATE))
		return;
	if (s->tx_skip < next) {
		/* the mark that goes with it is that of the first record under the new secret */
		struct sl_flow *front = c->wire.flow;
		struct sl_buf buf;

		if (!front || !sl_flow_reserve_whole(front, UPDATE_LEN + SL_RECORD_EXTRA, &buf))
			return;
		if (sl_record_seal(&s->tx, SL_RECORD_HANDSHAKE, update, UPDATE_LEN, c->tls->cipher)) {
			memcpy(buf.data, c->tls->cipher, UPDATE_LEN + SL_RECORD_EXTRA);
			front->mark = next;
			sl_flow_commit(front, &buf, UPDATE_LEN + SL_RECORD_EXTRA, 0);
		} else {
			sl_buf_free(front->edge, &buf);
		}
	}
	if ((s->tx_skip < next && s->tx.seq == before) || sl_half_update(&s->tx, &c->tls->crypto)) {
		sl_tls_conn_reset(c, SL_ERROR);
		return;
	}
	s->update_due = false;
	s->announced = 0;
	if (c->back)
		sl_flow_resume(c->back);
}

/* One record. Returns len, or 0: not now. */
static uint32_t piece_output(struct sl_tls_conn *c, const uint8_t *p, uint32_t len)
{
	struct sl_tls_stream *s = c->stream;

	if (s->tx.seq >= SEQ_MAX)
		s->update_due = true;
	if (s->update_due && (s->announced || !s->replay_left)) {
		sl_tls_stream_serve(c);
		if (s->update_due || c->state != SL_TLS_RUNNING)
			return 0;
	}
	if (s->tx_skip > sl_tls_tx_mark(s))
		s->tx.seq++;   /* tcp has it from our predecessor */
	else if (!record_send(c, SL_RECORD_DATA, p, len, 0))
		return 0;
	else
		c->tls->inst->bytes_out += len;
	s->tx_unacked += len;
	s->replay_left -= sl_min(len, s->replay_left);
	if (s->moves)
		serve_later(c);
	return len;
}

uint32_t sl_tls_stream_output(struct sl_tls_conn *c, const uint8_t *p, uint32_t len)
{
	uint32_t done = 0, n = 1;

	if (c->stream->moves && len > SL_RECORD_CONTENT && c->state == SL_TLS_RUNNING) {   /* a piece must be a record */
		c->tls->inst->counters[SL_CNT_BAD_MESSAGE]++;
		sl_tls_conn_reset(c, SL_ERROR_PROTOCOL);
	}
	sl_tls_stream_serve(c);
	while (done < len && n && c->state == SL_TLS_RUNNING) {
		n = piece_output(c, p + done, sl_min(len - done, (uint32_t)SL_RECORD_CONTENT));
		done += n;
	}
	if (c->stream->tx_unacked >= ACK_NOW)
		sl_tls_stream_serve(c);
	return c->state == SL_TLS_RUNNING ? done : len;
}

void sl_tls_stream_shutdown(struct sl_tls_conn *c)
{
	static const uint8_t alert[2] = {1, SL_ALERT_CLOSE_NOTIFY};
	struct sl_tls_stream *s = c->stream;

	if (s->announced)   /* a key update comes first */
		return;
	s->update_due = false;
	if (!record_send(c, SL_RECORD_ALERT, alert, sizeof(alert), 0))
		return;
	s->fin_ahead = false;
	c->tx_closing = false;
	if (c->rx_closed || !c->back)
		c->state = SL_TLS_CLOSED;
	sl_tls_conn_finish(c, SL_TLS_LINGER_MS);
}

static void end_serve(struct sl_tls_conn *c)
{
	struct sl_tls_stream *s = c->stream;
	uint8_t alert[2] = {s->end_alert == SL_ALERT_CLOSE_NOTIFY ? 1 : 2, s->end_alert};

	if (!announce(c, SL_MARK_END) || !record_send(c, SL_RECORD_ALERT, alert, sizeof(alert), 0))
		return;
	s->announced = 0;
	sl_tls_back_reset(c, SL_ERROR_PROTOCOL);
	sl_tls_conn_finish(c, SL_TLS_ALERT_LINGER_MS);
}

void sl_tls_stream_fail(struct sl_tls_conn *c, uint8_t alert)
{
	struct sl_tls_stream *s = c->stream;

	if (c->state == SL_TLS_CLOSED)
		return;
	c->tls->inst->counters[SL_CNT_CLIENT_ERROR]++;
	if (s->announced || s->replay_left || s->fin_ahead) {   /* the next number is not free for an alert */
		sl_tls_conn_reset(c, SL_ERROR_PROTOCOL);
		return;
	}
	c->state = SL_TLS_CLOSED;
	s->end_alert = alert;
	if (!s->moves)
		sl_tls_back_reset(c, SL_ERROR_PROTOCOL);
	sl_timer_arm(&c->tls->inst->wheel, &c->timer, SL_TLS_ALERT_LINGER_MS);
	s->update_due = false;
	end_serve(c);
	if (s->announced)
		serve_later(c);
}

/* --- what becomes due --- */

static void acks_send(struct sl_tls_conn *c)
{
	struct sl_tls_stream *s = c->stream;
	struct sl_flow *front = c->wire.flow;

	if (s->rx_safe_pos - s->rx_acked_pos >= ACK_NOW)
		sl_flow_publish(c->back);
	if (s->tx_unacked >= ACK_NOW)
		sl_flow_publish(front);
	if (s->rx_safe_pos != s->rx_acked_pos && sl_flow_published(c->back)) {
		sl_flow_ack(front, (uint32_t)(s->rx_safe_pos - s->rx_acked_pos), s->rx_safe);
		s->rx_acked_pos = s->rx_safe_pos;
		s->rx_acked = s->rx_safe;
	}
	if (s->tx_unacked && sl_flow_published(front)) {
		sl_flow_ack(c->back, s->tx_unacked, sl_tls_tx_mark(s));
		s->tx_unacked = 0;
		s->tx_acked = sl_tls_tx_mark(s);
	}
	/* old secrets can be forgotten once nothing under them may be asked for again: http has to know, too */
	if ((s->sealed_rx != s->rx.gen || s->sealed_tx != s->tx.gen) && sl_mark_gen(s->rx_acked) == s->rx.gen &&
	    sl_mark_gen(s->tx_acked) == s->tx.gen && sl_flow_published(c->back))
		s->state_due = true;
	if (s->state_due)
		sl_tls_state_offer(c);
}

void sl_tls_stream_serve(struct sl_tls_conn *c)
{
	struct sl_tls_stream *s = c->stream;

	if (s->moves && c->state == SL_TLS_RUNNING && c->back && c->wire.flow)
		acks_send(c);
	if (s->announced == SL_MARK_END)
		end_serve(c);
	else if (s->update_due)
		update_serve(c);
	if (!c->wire.flow || (s->moves && !c->back))
		return;
	if (s->announced || s->update_due || s->state_due || s->tx_unacked || s->rx_safe_pos != s->rx_acked_pos)
		serve_later(c);
}

void sl_tls_acks_fire(struct sl_timer *t)
{
	struct sl_tls *tls = sl_container_of(t, struct sl_tls, ack_timer);
	struct sl_list todo;

	sl_list_take(&todo, &tls->acks);   /* who is still due appends itself again */
	while (!sl_list_empty(&todo)) {
		struct sl_tls_stream *s = sl_container_of(todo.next, struct sl_tls_stream, ack_node);
		struct sl_tls_conn *c = s->conn;

		sl_list_unlink(&s->ack_node);
		sl_tls_conn_enter(c);
		sl_tls_stream_serve(c);
		sl_tls_conn_leave(c);
	}
}
