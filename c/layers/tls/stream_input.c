/* SPDX-License-Identifier: Apache-2.0 */
/* What the client sends on a TLS 1.3 connection after its handshake. Records are copied out once, opened in private
 * memory, and handed on only when their tag was right. */
#include <stdlib.h>

#include "layers/tls/tls.h"

/* Plaintext of some records on its way to http: one slot, one DATA, each record whole */
struct gather {
	struct sl_edge *edge;    /* NULL: no slot */
	struct sl_buf buf;
	uint32_t len, cap;
	uint64_t mark;
};

static void gather_flush(struct sl_tls_conn *c, struct gather *g)
{
	struct sl_edge *edge = g->edge;
	struct sl_buf buf = g->buf;

	if (!edge)
		return;
	g->edge = NULL;
	if (!g->len || !c->back) {
		sl_buf_free(edge, &buf);
		return;
	}
	c->tls->inst->bytes_in += g->len;
	c->back->mark = g->mark;
	sl_flow_commit(c->back, &buf, g->len, c->rx_closed ? SL_F_FIN : 0);
	g->len = 0;
}

/* Room for n bytes; `more`: what may follow soon. False: http takes no more for now. */
static bool gather_room(struct sl_tls_conn *c, struct gather *g, uint32_t n, uint32_t more)
{
	uint32_t want = sl_max(n, sl_min(more, (uint32_t)SL_RECORD_CONTENT)), room;

	if (g->edge && g->cap - g->len >= n)
		return true;
	gather_flush(c, g);
	room = sl_flow_reserve(c->back, want, &g->buf);
	if (room && room < n)
		sl_buf_free(c->back->edge, &g->buf);
	if (room < n && (!room || !sl_flow_reserve_whole(c->back, n, &g->buf)))
		return false;
	g->edge = c->back->edge;
	g->cap = sl_max(room, n);
	g->len = 0;
	return true;
}

/* --- one record's content --- */

static void key_update(struct sl_tls_conn *c, const uint8_t *p, uint32_t len)
{
	/* the only handshake message that a client may send now; it must end its record (RFC 8446 section 5.1) */
	static const uint8_t head[4] = {24, 0, 0, 1};
	struct sl_tls_stream *s = c->stream;

	if (len != 5 || memcmp(p, head, sizeof(head)) || p[4] > 1 || ++s->nb_empty > SL_TLS_EMPTY_MAX) {
		sl_tls_stream_fail(c, SL_ALERT_UNEXPECTED_MESSAGE);
		return;
	}
	if (sl_half_update(&s->rx, &c->tls->crypto)) {
		sl_tls_stream_fail(c, SL_ALERT_INTERNAL_ERROR);
		return;
	}
	if (p[4])
		s->update_due = true;
}

static void alert(struct sl_tls_conn *c, const uint8_t *p, uint32_t len)
{
	if (len == 2 && p[1] == SL_ALERT_USER_CANCELED && ++c->stream->nb_empty <= SL_TLS_EMPTY_MAX)
		return;
	if (len == 2 && p[1] == SL_ALERT_CLOSE_NOTIFY)
		c->rx_closed = true;
	else if (len == 2)   /* all others are fatal, and are not answered (RFC 8446 section 6.2) */
		sl_tls_conn_reset(c, SL_ERROR_PROTOCOL);
	else
		sl_tls_stream_fail(c, SL_ALERT_UNEXPECTED_MESSAGE);
}

static void data(struct sl_tls_conn *c, struct gather *g, const uint8_t *p, uint32_t len)
{
	struct sl_tls_stream *s = c->stream;
	uint64_t mark = sl_tls_rx_mark(s);

	if (!len && ++s->nb_empty > SL_TLS_EMPTY_MAX)
		sl_tls_stream_fail(c, SL_ALERT_UNEXPECTED_MESSAGE);
	if (!len)
		return;
	s->nb_empty = 0;
	if (mark > s->rx_skip) {
		memcpy(g->buf.data + g->len, p, len);
		g->len += len;
		g->mark = mark;
	}
	/* records without data are not acknowledged before the next one with: http's mark must not fall behind */
	s->rx_safe_pos = s->rx_pos;
	s->rx_safe = mark;
}

static void record_take(struct sl_tls_conn *c, struct gather *g, uint8_t *r, uint32_t len)
{
	struct sl_tls_stream *s = c->stream;
	uint8_t type = 0;
	int n = sl_record_open(&s->rx, r, len, &type);
	const uint8_t *p = r + SL_RECORD_HEAD;

	s->rx_pos += len;
	if (n < 0) {
		gather_flush(c, g);
		sl_tls_stream_fail(c, (uint8_t)-n);
		return;
	}
	switch (type) {
	case SL_RECORD_DATA:
		data(c, g, p, (uint32_t)n);
		break;
	case SL_RECORD_HANDSHAKE:
		key_update(c, p, (uint32_t)n);
		break;
	case SL_RECORD_ALERT:
		alert(c, p, (uint32_t)n);
		break;
	default:
		sl_tls_stream_fail(c, SL_ALERT_UNEXPECTED_MESSAGE);
	}
}

/* --- records out of the stream of bytes --- */

/* Adds to the begun record up to `to` bytes in all. */
static uint32_t part_fill(struct sl_tls_stream *s, const uint8_t *p, uint32_t len, uint32_t to)
{
	uint32_t n = sl_min(len, to - s->part_len);

	memcpy(s->part + s->part_len, p, n);
	s->part_len += n;
	return n;
}

/* A record that did not come in one piece. Returns the bytes taken, 0: no room. */
static uint32_t part_take(struct sl_tls_conn *c, struct gather *g, const uint8_t *p, uint32_t len)
{
	struct sl_tls_stream *s = c->stream;
	uint32_t taken = 0;
	int total;

	if (!s->part && !(s->part = malloc(SL_RECORD_MAX))) {
		sl_tls_conn_reset(c, SL_ERROR);
		return len;
	}
	if (s->part_len < SL_RECORD_HEAD)
		taken = part_fill(s, p, len, SL_RECORD_HEAD);
	if (s->part_len < SL_RECORD_HEAD)
		return taken;
	total = sl_record_len(s->part);
	if (total < 0) {
		sl_tls_stream_fail(c, (uint8_t)-total);
		return len;
	}
	/* the last byte is only taken when there is room for what it completes: no record waits in here */
	if (s->part_len + (len - taken) >= (uint32_t)total &&
	    !gather_room(c, g, sl_max((uint32_t)total - SL_RECORD_EXTRA, 1u), len - taken))
		return taken;
	taken += part_fill(s, p + taken, len - taken, (uint32_t)total);
	if (s->part_len == (uint32_t)total) {
		s->part_len = 0;
		record_take(c, g, s->part, (uint32_t)total);
		free(s->part);
		s->part = NULL;
	}
	return taken;
}

/* Takes one record or a part of it. Returns the bytes taken, 0: no room. */
static uint32_t next_take(struct sl_tls_conn *c, struct gather *g, const uint8_t *p, uint32_t len)
{
	struct sl_tls_stream *s = c->stream;
	uint8_t *r = c->tls->plain;
	int total;

	if (s->part_len || len < SL_RECORD_HEAD)
		return part_take(c, g, p, len);
	memcpy(r, p, SL_RECORD_HEAD);
	total = sl_record_len(r);
	if (total < 0) {
		gather_flush(c, g);
		sl_tls_stream_fail(c, (uint8_t)-total);
		return len;
	}
	if ((uint32_t)total > len)
		return part_take(c, g, p, len);
	if (!gather_room(c, g, sl_max((uint32_t)total - SL_RECORD_EXTRA, 1u), len))
		return 0;
	memcpy(r + SL_RECORD_HEAD, p + SL_RECORD_HEAD, (uint32_t)total - SL_RECORD_HEAD);
	record_take(c, g, r, (uint32_t)total);
	return (uint32_t)total;
}

uint32_t sl_tls_stream_input(struct sl_tls_conn *c, const uint8_t *p, uint32_t len)
{
	struct gather g = {.len = 0};
	uint32_t taken = 0, n = 1;

	sl_tls_stream_serve(c);
	while (taken < len && n && c->state == SL_TLS_RUNNING && !c->rx_closed && c->back) {
		n = next_take(c, &g, p + taken, len - taken);
		taken += n;
	}
	if (c->back && c->rx_closed && !g.len && !c->back->tx_fin)
		sl_flow_fin(c->back);
	gather_flush(c, &g);
	if (c->state == SL_TLS_CLOSED || c->rx_closed || !c->back)
		taken = len;
	sl_tls_stream_serve(c);
	return taken;
}
