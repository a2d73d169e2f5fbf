/* SPDX-License-Identifier: Apache-2.0 */
/* Flows that outlive their peer: what was sent is kept until it is safe, and sent again to the next peer. Who says what is
 * in abi/packet.h, what layers do is in flow.h. */
#include "base/atomic.h"
#include "base/base.h"
#include "edge/flow_private.h"
#include "edge/route.h"

void sl_flow_keep(struct sl_flow *f, uint32_t piece_max)
{
	f->keeps = true;
	f->piece_max = piece_max;
	f->kept.cut = piece_max;
}

bool sl_flow_kept_add(struct sl_flow *f, const struct sl_buf *buf, uint32_t len)
{
	return sl_pieces_add(&f->kept, buf->data, len);
}

/* --- losing a peer --- */

bool sl_flow_orphan(struct sl_flow *f)
{
	if (f->state != FLOW_OPEN || !(f->keeps || sl_flow_heard_all(f)) || !f->ops->orphaned)
		return false;
	sl_flow_id_release(f);
	sl_list_unlink(&f->wait_node);
	sl_list_unlink(&f->link_node);
	f->owed = 0;
	f->ack_len = 0;
	if (sl_flow_heard_all(f)) {   /* what is here is to be taken, and that is the end */
		f->tx_fin = true;
		f->state = FLOW_DETACHED;
		sl_list_append(&f->link->flows, &f->link_node);
		sl_flow_over_if_both_fins(f);
		return true;
	}
	f->state = FLOW_ORPHAN;
	sl_list_append(&f->edge->orphans, &f->link_node);
	if (f->ops->orphaned(f))
		return true;
	f->state = FLOW_OPEN;   /* as it was: over() follows */
	return false;
}

/* --- the next peer --- */

static void settle(struct sl_flow *f, uint8_t owed)
{
	f->state = FLOW_OPEN;
	f->peer_vm = f->link->vm_id;
	f->tx_window = f->rx_window = SL_FLOW_WINDOW;
	f->rx_credit = 0;
	f->rx_stale = sl_flow_backlog(f);
	f->replayed = 0;
	f->owed = owed;
	if (f->kept.bytes)
		f->owed |= OWE_REPLAY;
	if (f->drained && f->edge->side == SL_FRONT)
		f->owed |= OWE_DRAIN;
	if (f->tx_fin)
		f->owed |= OWE_FIN;
	sl_list_unlink(&f->link_node);
	sl_list_append(&f->link->flows, &f->link_node);
	sl_flow_wait(f);   /* sl_flows_serve pays what is owed, and calls writable() if that is due */
}

int sl_flow_reopen(struct sl_flow *f, const void *state, uint32_t len)
{
	struct sl_link *l = sl_select_best_vm(f->edge);
	int err;

	if (!l)
		return -ENETUNREACH;
	err = sl_flow_open_on(l, f, &f->seen, sizeof(f->seen), state, len, SL_F_MOVE | (f->traced ? SL_F_TRACE : 0));
	if (!err)
		settle(f, 0);
	return err;
}

void sl_flow_adopt(struct sl_flow *f, struct sl_flow *heir)
{
	struct sl_link *l = heir->link;

	f->link = l;
	f->flow_id = heir->flow_id;
	f->sent_end = l->tx.prod;
	l->by_index[f->flow_id & SL_FLOW_INDEX_MASK] = f;   /* so burying the heir leaves it alone */
	sl_flow_bury(heir);
	settle(f, OWE_RESUMED);
}

bool sl_flow_replay(struct sl_flow *f)
{
	uint32_t at = f->replayed, len;
	const uint8_t *p;

	while ((p = sl_pieces_next(&f->kept, &at, &len))) {
		struct sl_request_packet entry = {.op = SL_OP_DATA};
		struct sl_buf buf;

		if (sl_link_room(f->link) <= ROOM_FOR_CONTROL || sl_buf_alloc(f->edge, len, &buf))
			return false;
		if (buf.cap < len && f->kept.cut) {
			sl_buf_free(f->edge, &buf);
			return false;
		}
		if (buf.cap < len) {
			at -= len - buf.cap;
			len = buf.cap;
		}
		memcpy(buf.data, p, len);
		entry.length = len;
		sl_entry_send(f, &entry, &buf);   /* there is room */
		f->tx_window -= len;
		f->replayed = at;
	}
	return true;
}

bool sl_flow_resumed_send(struct sl_flow *f)
{
	struct sl_flow_marks m = f->seen;
	struct sl_request_packet p = {.op = SL_OP_RESUMED, .length = sizeof(m)};
	struct sl_buf buf;

	if (!sl_link_room(f->link) || sl_buf_alloc(f->edge, sizeof(m), &buf))
		return false;
	m.kept_len = f->kept.bytes;
	m.got_fin = f->rx_fin;
	m.sent_fin = f->tx_fin;
	memcpy(buf.data, &m, sizeof(m));
	sl_entry_send(f, &p, &buf);
	return true;
}

/* --- the middle --- */

bool sl_flow_published(const struct sl_flow *f)
{
	return !(f->owed & (OWE_RESET | OWE_FIN)) && (int32_t)(f->link->tx.published - f->sent_end) >= 0;
}

void sl_flow_publish(struct sl_flow *f)
{
	sl_signal_vm(f->edge);
}

bool sl_flow_delivered(const struct sl_flow *f)
{
	return !f->owed && (int32_t)(f->link->tx.oldest - f->sent_end) >= 0;
}

void sl_flow_ack(struct sl_flow *f, uint32_t len, uint64_t mark)
{
	if (f->state != FLOW_OPEN)
		return;
	f->ack_len = len == SL_ACK_ALL ? len : f->ack_len + len;
	f->ack_mark = mark;
	sl_flow_owe(f, OWE_ACK);
}

int sl_flow_state(struct sl_flow *f, const void *msg, uint32_t len)
{
	struct sl_request_packet p = {.op = SL_OP_STATE, .length = len};
	struct sl_buf buf;

	if (f->state != FLOW_OPEN || sl_link_room(f->link) <= ROOM_FOR_CONTROL || sl_buf_alloc(f->edge, len, &buf))
		return -EAGAIN;
	memcpy(buf.data, msg, len);
	return sl_entry_send(f, &p, &buf);
}

/* --- taking in --- */

/* Forgets what is safe. Only what was sent can be: false otherwise. */
static bool kept_drop(struct sl_flow *f, uint32_t len)
{
	uint32_t used = f->kept.len - f->kept.pos, gone;

	if (!sl_pieces_drop(&f->kept, len))
		return false;
	gone = used - (f->kept.len - f->kept.pos);
	if (!(f->owed & OWE_REPLAY))
		return true;
	if (gone > f->replayed)
		return false;
	f->replayed -= gone;
	return true;
}

static void ack_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	if (!f->keeps)
		return;
	if (p->length == SL_ACK_ALL) {
		f->keeps = false;
		sl_pieces_free(&f->kept);
	} else if (!kept_drop(f, p->length)) {
		sl_link_quarantine(f->link, SL_CNT_BAD_WINDOW);
		return;
	}
	f->seen.kept = p->request_id;
	if (f->blocked && sl_list_empty(&f->wait_node)) {
		f->blocked = false;
		f->ops->writable(f);
	}
}

static void state_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	struct sl_edge *e = f->edge;

	if (p->length > SL_STATE_LEN || !f->ops->state || e->side != SL_FRONT) {
		sl_link_quarantine(f->link, SL_CNT_BAD_MESSAGE);
		return;
	}
	memcpy(e->scratch, sl_payload(e, p), p->length);
	sl_copied_once();
	f->ops->state(f, e->scratch, p->length);
}

static void resumed_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	struct sl_flow_marks m;

	if (p->length != sizeof(m) || !f->ops->resumed || f->edge->side != SL_FRONT) {
		sl_link_quarantine(f->link, SL_CNT_BAD_MESSAGE);
		return;
	}
	memcpy(&m, sl_payload(f->edge, p), sizeof(m));
	sl_copied_once();
	if (m.got_fin)
		f->tx_fin = true;   /* that was sent already, by who had the flow before */
	f->ops->resumed(f, &m);
}

/* Whether new flows can go to another receiver. */
static bool another(const struct sl_edge *e, const struct sl_link *l)
{
	return e->alias.nb > 1 || (e->alias.nb && e->alias.link[0] != l);
}

static void drain_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	struct sl_link *l = f->link;

	/* it says itself that it wants no more; the next route page decides. That one may name the first other receiver, so
	 * until then the only one goes on */
	if (l->edge->side == SL_FRONT && l->weight && another(l->edge, l)) {
		l->weight = 0;
		sl_alias_build(l->edge);
	}
	if (p->flags & SL_F_MOVE) {
		if (f->ops->hand_over)
			f->ops->hand_over(f);
	} else if (f->ops->drain) {
		f->ops->drain(f);
	}
}

bool sl_flow_hand_over(struct sl_flow *f)
{
	if (f->state != FLOW_OPEN || !another(f->edge, f->link))
		return false;
	sl_flow_owe(f, OWE_HAND_OVER);
	return true;
}

void sl_flow_move_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	switch (p->op) {
	case SL_OP_ACK:
		ack_input(f, p);
		break;
	case SL_OP_STATE:
		state_input(f, p);
		break;
	case SL_OP_RESUMED:
		resumed_input(f, p);
		break;
	default:
		drain_input(f, p);
	}
}
