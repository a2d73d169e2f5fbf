/* SPDX-License-Identifier: Apache-2.0 */
/* A connection leaves an instance, and goes on in another one. What makes that safe is in move.h. */
#include <stdlib.h>

#include <openssl/rand.h>

#include "layers/tls/tls.h"

/* --- what we leave with tcp --- */

void sl_tls_state_offer(struct sl_tls_conn *c)
{
	struct sl_tls_stream *s = c->stream;
	struct sl_tls_state st;
	uint8_t sealed[SL_SEALED_LEN];

	memset(&st, 0, sizeof(st));   /* no padding of ours leaves the instance */
	st.request_id = c->wire.flow->request_id;
	st.tx_first = s->tx_first;
	st.suite = s->rx.suite->id;
	st.http_vm = c->back->peer_vm;
	st.service = c->open.service;
	st.rx_gen = s->rx.gen;
	st.tx_gen = s->tx.gen;
	memcpy(st.token, s->token, sizeof(st.token));
	memcpy(st.rx_secret, s->rx.secret, sizeof(st.rx_secret));
	memcpy(st.tx_secret, s->tx.secret, sizeof(st.tx_secret));
	s->state_due = true;
	if (sl_state_seal(&c->tls->crypto, &c->tls->pool, &st, sealed) &&
	    !sl_flow_state(c->wire.flow, sealed, sizeof(sealed))) {
		s->state_due = false;
		s->sealed_rx = st.rx_gen;
		s->sealed_tx = st.tx_gen;
	}
	OPENSSL_cleanse(&st, sizeof(st));
}

/* --- leaving --- */

static bool movable(const struct sl_tls_conn *c)
{
	return c->stream && c->stream->moves && !c->stream->state_due && c->state == SL_TLS_RUNNING && c->back && c->wire.flow;
}

/* All that we have sent lies in front of this in both rings; the ends keep the rest. */
void sl_tls_hand_over(struct sl_tls_conn *c)
{
	struct sl_flow *front = c->wire.flow;

	if (!movable(c))
		return;
	c->state = SL_TLS_CLOSED;
	sl_flow_give_up(c->back);
	c->back = NULL;
	sl_trace_flow(front, SL_TRACE_DONE, 0);
	sl_tls_wire_drop(&c->wire);
	sl_flow_give_up(front);
}

static void conns_each(struct sl_tls *tls, void (*act)(struct sl_tls_conn *c))
{
	struct sl_list *node, *next;

	for (node = tls->conns.next; node != &tls->conns; node = next) {
		next = node->next;
		act(sl_container_of(node, struct sl_tls_conn, node));
	}
}

static void relief_ask(struct sl_tls_conn *c)
{
	if (movable(c))
		sl_flow_drain(c->wire.flow);
	else if (c->back)
		sl_flow_drain(c->back);
}

static void polite_end_ask(struct sl_tls_conn *c)
{
	c->draining = true;
	if (c->back)
		sl_flow_drain(c->back);
}

void sl_tls_relieve(struct sl_tls *tls)
{
	conns_each(tls, relief_ask);
	sl_timer_arm(&tls->inst->wheel, &tls->relief_timer, SL_TLS_RELIEF_MS);
}

/* Nobody took these: there is no other instance, or they can not move. */
void sl_tls_relief_fire(struct sl_timer *t)
{
	conns_each(sl_container_of(t, struct sl_tls, relief_timer), polite_end_ask);
}

/* --- coming --- */

int sl_tls_takeover(struct sl_tls *tls, struct sl_flow *f, const void *msg, uint32_t len)
{
	struct sl_flow_open open;
	struct sl_tls_state *st = malloc(sizeof(*st));
	const uint32_t marks_len = sizeof(struct sl_flow_marks);
	struct sl_tls_conn *c;

	if (!st)
		return -SL_ERROR_REFUSED;
	if (!tls->has_pool || len < marks_len ||
	    !sl_state_unseal(&tls->crypto, &tls->pool, (const uint8_t *)msg + marks_len, len - marks_len, st) ||
	    st->request_id != f->request_id || !sl_suite_find(st->suite)) {
		free(st);
		tls->inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_PROTOCOL;
	}
	memset(&open, 0, sizeof(open));
	open.service = st->service;
	c = sl_tls_conn_new(tls, f, NULL);
	if (!c) {
		free(st);
		return -SL_ERROR_REFUSED;
	}
	c->open = open;
	c->taken = st;
	memcpy(&c->tcp_marks, msg, sizeof(c->tcp_marks));
	c->state = SL_TLS_RESUMING;
	c->deadline_ms = tls->inst->wheel.now_ms + SL_TLS_RESUME_MS;
	f->user = c;
	sl_tls_takeover_open(c);
	return 0;
}

void sl_tls_takeover_open(struct sl_tls_conn *c)
{
	struct sl_instance *inst = c->tls->inst;
	struct sl_edge *e = sl_instance_next_edge(inst, c->open.service);
	int err = -ENETUNREACH;

	if (e)
		err = sl_flow_take_over(e, c->taken->http_vm, c->taken->request_id, c->taken->token, sizeof(c->taken->token), c,
					&c->back);
	if (err)   /* http's own route page may come a little later than tcp's flow */
		sl_timer_arm(&inst->wheel, &c->timer, 1);
	else
		sl_timer_arm(&inst->wheel, &c->timer, SL_TLS_RESUME_MS);
	if (c->back)
		c->back->whole = true;
}

/* From the secrets' generation on to that of the mark. */
static bool half_make(struct sl_half *h, struct sl_tls *tls, const struct sl_tls_state *st, bool seals, uint64_t mark)
{
	const struct sl_suite *suite = sl_suite_find(st->suite);
	const uint8_t *secret = seals ? st->tx_secret : st->rx_secret;
	uint16_t gen = seals ? st->tx_gen : st->rx_gen, to = sl_mark_gen(mark);

	if (to < gen || sl_half_set(h, &tls->crypto, suite, secret, gen, seals))
		return false;
	while (h->gen < to)
		if (sl_half_update(h, &tls->crypto))
			return false;
	h->seq = (mark & SL_MARK_SEQ) + (seals && !to ? st->tx_first : 0);
	return true;
}

/* Marks that an end gave back; a number that no tls instance made counts as none. */
static uint64_t mark_of(uint64_t mark)
{
	return mark & SL_MARK_VALID ? mark : sl_mark(0, 0);
}

static bool stream_make(struct sl_tls_conn *c, const struct sl_flow_marks *http)
{
	uint64_t rx_safe = mark_of(c->tcp_marks.kept) & ~(SL_MARK_UPDATE | SL_MARK_END), rx_got = mark_of(http->got);
	uint64_t tx_safe = mark_of(http->kept), tx_got = mark_of(c->tcp_marks.got) & ~(SL_MARK_UPDATE | SL_MARK_END);
	struct sl_tls_stream *s = calloc(1, sizeof(*s));
	struct sl_tls_state *st = c->taken;

	if (!s)
		return false;
	c->stream = s;
	s->conn = c;
	sl_list_init(&s->ack_node);
	s->moves = true;
	s->tx_first = st->tx_first;
	memcpy(s->token, st->token, sizeof(s->token));
	s->sealed_rx = st->rx_gen;
	s->sealed_tx = st->tx_gen;
	s->rx_safe = s->rx_acked = rx_safe;
	s->rx_skip = rx_got;
	s->tx_skip = tx_got;
	s->tx_acked = tx_safe & ~SL_MARK_UPDATE;
	s->announced = tx_safe & SL_MARK_UPDATE;
	s->update_due = s->announced;
	s->replay_left = http->kept_len;
	s->fin_ahead = http->sent_fin;
	/* what one end has let go of the other one must have */
	return !(tx_safe & SL_MARK_END) && rx_safe <= rx_got && (tx_safe & ~SL_MARK_UPDATE) <= tx_got &&
	       half_make(&s->rx, c->tls, st, false, rx_safe) && half_make(&s->tx, c->tls, st, true, tx_safe);
}

void sl_tls_takeover_resumed(struct sl_tls_conn *c, const struct sl_flow_marks *http)
{
	struct sl_instance *inst = c->tls->inst;
	bool good;

	if (c->state != SL_TLS_RESUMING)
		return;
	good = stream_make(c, http);
	OPENSSL_cleanse(c->taken, sizeof(*c->taken));
	free(c->taken);
	c->taken = NULL;
	if (!good) {
		inst->counters[SL_CNT_MOVE_FAILED]++;
		sl_tls_conn_reset(c, SL_ERROR);
		return;
	}
	inst->counters[SL_CNT_MOVED]++;
	sl_timer_cancel(&c->timer);
	c->state = SL_TLS_RUNNING;
	c->rx_closed = http->got_fin;
	c->answered = true;
	if (c->draining)
		sl_flow_drain(c->back);
	if (inst->draining)
		sl_flow_drain(c->wire.flow);
	sl_tls_stream_serve(c);
	if (c->wire.flow)
		sl_flow_resume(c->wire.flow);
	if (c->fin_early && !c->rx_closed)
		sl_tls_stream_fail(c, SL_ALERT_CLOSE_NOTIFY);
}
