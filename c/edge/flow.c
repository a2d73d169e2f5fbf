/* SPDX-License-Identifier: Apache-2.0 */
/* Flows, sending: what layers call, and what waits for ring space or a slot. */
#include "base/base.h"
#include "edge/flow_private.h"

int sl_entry_send(struct sl_flow *f, struct sl_request_packet *p, const struct sl_buf *buf)
{
	uint32_t seq;
	int err;

	if (!p->request_id)
		p->request_id = f->request_id;
	p->flow_id = f->flow_id;
	err = sl_route_request(f->link, p, buf, &seq);
	if (!err)
		f->sent_end = seq + 1;
	return err;
}

static int entry_send(struct sl_flow *f, uint8_t op, uint16_t flags, uint16_t status, uint32_t len, const struct sl_buf *buf)
{
	struct sl_request_packet p = {
		.request_id = op == SL_OP_DATA ? f->mark : op == SL_OP_ACK ? f->ack_mark : 0,
		.length = len, .flags = flags, .status = status, .op = op,
	};

	return sl_entry_send(f, &p, buf);
}

void sl_flow_wait(struct sl_flow *f)
{
	if (sl_list_empty(&f->wait_node))
		sl_list_append(&f->link->waiting, &f->wait_node);
}

/* Sends what is owed. Returns false when the ring is full again. */
static bool owed_send(struct sl_flow *f)
{
	if ((f->owed & OWE_RESET)) {
		if (entry_send(f, SL_OP_RESET, f->reset_flags, f->reset_status, 0, NULL))
			return false;
		f->owed = 0;
		sl_flow_bury(f);
		return true;
	}
	if (f->owed & OWE_RESUMED) {
		if (!sl_flow_resumed_send(f))
			return false;
		f->owed &= (uint8_t)~OWE_RESUMED;
	}
	if (f->owed & OWE_WINDOW) {
		if (entry_send(f, SL_OP_WINDOW, 0, 0, f->rx_credit, NULL))
			return false;
		f->rx_window += f->rx_credit;
		f->rx_credit = 0;
		f->owed &= (uint8_t)~OWE_WINDOW;
	}
	if (f->owed & OWE_ACK) {
		if (entry_send(f, SL_OP_ACK, 0, 0, f->ack_len, NULL))
			return false;
		f->ack_len = 0;
		f->owed &= (uint8_t)~OWE_ACK;
	}
	if (f->owed & OWE_REPLAY) {
		if (!sl_flow_replay(f))
			return false;
		f->owed &= (uint8_t)~OWE_REPLAY;
	}
	for (unsigned what = OWE_DRAIN; what <= OWE_HAND_OVER; what <<= 1) {
		if (!(f->owed & what))
			continue;
		if (entry_send(f, SL_OP_DRAIN, what == OWE_HAND_OVER ? SL_F_MOVE : 0, 0, 0, NULL))
			return false;
		f->owed &= (uint8_t)~what;
	}
	if (f->owed & OWE_FIN) {
		if (entry_send(f, SL_OP_DATA, SL_F_FIN, 0, 0, NULL))
			return false;
		f->owed &= (uint8_t)~OWE_FIN;
		sl_flow_over_if_both_fins(f);
	}
	return true;
}

void sl_flow_owe(struct sl_flow *f, uint8_t what)
{
	f->owed |= what;
	if (!owed_send(f))
		sl_flow_wait(f);
}

uint32_t sl_flow_reserve(struct sl_flow *f, uint32_t want, struct sl_buf *buf)
{
	uint32_t len = sl_min(want, f->tx_window);

	if ((f->state != FLOW_OPEN && f->state != FLOW_ORPHAN) || f->tx_fin)
		return 0;
	if (f->keeps)
		len = sl_min(len, SL_FLOW_WINDOW - f->kept.bytes);
	if (f->piece_max)
		len = sl_min(len, f->piece_max);
	if (!len || f->state == FLOW_ORPHAN || (f->owed & (OWE_RESUMED | OWE_REPLAY))) {
		f->blocked = true;   /* WINDOW, ACK, the next peer or the end of the replay will call */
		return 0;
	}
	if (sl_link_room(f->link) <= ROOM_FOR_CONTROL || sl_buf_alloc(f->edge, len, buf)) {
		f->blocked = true;
		sl_flow_wait(f);
		return 0;
	}
	return sl_min(len, buf->cap);
}

bool sl_flow_reserve_whole(struct sl_flow *f, uint32_t len, struct sl_buf *buf)
{
	uint32_t room = sl_flow_reserve(f, len, buf);

	if (room >= len)
		return true;
	if (room) {
		sl_buf_free(f->edge, buf);
		f->blocked = true;
		if (f->tx_window >= len)   /* only small slots were left */
			sl_flow_wait(f);
	}
	return false;
}

void sl_flow_commit(struct sl_flow *f, struct sl_buf *buf, uint32_t len, uint32_t flags)
{
	/* reserve made sure of the room, unless the flow ended or its layer filled the ring meanwhile */
	if (f->state != FLOW_OPEN || f->tx_fin || (f->keeps && !sl_flow_kept_add(f, buf, len)) ||
	    entry_send(f, SL_OP_DATA, flags & SL_F_FIN, 0, len, buf)) {
		sl_buf_free(f->edge, buf);
		if (f->state == FLOW_OPEN && !f->tx_fin)
			sl_flow_reset(f, SL_ERROR);
		return;
	}
	f->tx_window -= len;
	if (flags & SL_F_FIN) {
		f->tx_fin = true;
		sl_flow_over_if_both_fins(f);
	}
}

uint32_t sl_flow_write(struct sl_flow *f, const void *p, uint32_t len)
{
	uint32_t done = 0;

	while (done < len) {
		struct sl_buf buf;
		uint32_t room = sl_flow_reserve(f, len - done, &buf);

		if (!room)
			break;
		memcpy(buf.data, (const uint8_t *)p + done, room);
		sl_flow_commit(f, &buf, room, 0);
		done += room;
	}
	return done;
}

void sl_flow_fin(struct sl_flow *f)
{
	if ((f->state != FLOW_OPEN && f->state != FLOW_ORPHAN) || f->tx_fin)
		return;
	f->tx_fin = true;
	f->blocked = false;
	if (f->state == FLOW_OPEN)
		sl_flow_owe(f, OWE_FIN);
}

void sl_flow_drain(struct sl_flow *f)
{
	if ((f->state != FLOW_OPEN && f->state != FLOW_ORPHAN) || f->drained)
		return;
	f->drained = true;
	if (f->state == FLOW_OPEN)
		sl_flow_owe(f, OWE_DRAIN);
}

void sl_edge_drain(struct sl_edge *e)
{
	e->draining = true;
	for (unsigned i = 0; i < e->nb_up; i++) {
		struct sl_list *head = &e->up[i]->flows;

		for (struct sl_list *node = head->next; node != head; node = node->next)
			sl_flow_drain(sl_container_of(node, struct sl_flow, link_node));
	}
}

void sl_flow_reset(struct sl_flow *f, enum sl_request_status status)
{
	if (f->state == FLOW_OVER)
		return;
	if (f->state == FLOW_DETACHED || f->state == FLOW_ORPHAN) {   /* no peer knows it */
		sl_flow_bury(f);
		return;
	}
	sl_flow_id_release(f);
	f->state = FLOW_OVER;
	f->blocked = false;
	f->reset_status = (uint8_t)status;
	f->owed = 0;
	sl_flow_owe(f, OWE_RESET);
}

void sl_flow_give_up(struct sl_flow *f)
{
	f->reset_flags = SL_F_MOVE;
	sl_flow_reset(f, SL_ERROR_PEER_GONE);
}

int sl_flow_open_on(struct sl_link *l, struct sl_flow *f, const void *head, uint32_t head_len, const void *msg, uint32_t len,
		    uint32_t flags)
{
	struct sl_edge *e = l->edge;
	struct sl_buf buf;

	if (sl_link_room(l) <= ROOM_FOR_CONTROL || !e->nb_free_index || sl_buf_alloc(e, head_len + len, &buf))
		return -EAGAIN;
	if (buf.cap < head_len + len) {
		sl_buf_free(e, &buf);
		return -EAGAIN;
	}
	if (head_len)
		memcpy(buf.data, head, head_len);
	memcpy(buf.data + head_len, msg, len);
	f->link = l;
	f->flow_id = sl_flow_index_take(e, f);
	entry_send(f, SL_OP_OPEN, (uint16_t)flags, 0, head_len + len, &buf);   /* there is room */
	f->open_seq = f->sent_end - 1;
	return 0;
}

static int open_at(struct sl_link *l, uint64_t request_id, const void *msg, uint32_t len, uint32_t flags, void *user,
		   struct sl_flow **ret)
{
	struct sl_edge *e = l->edge;
	struct sl_flow *f;

	if (len > e->g.big_len)
		return -EMSGSIZE;
	f = sl_flow_new(l, request_id ? request_id : e->ops->request_id(e));
	if (!f)
		return -EAGAIN;
	f->user = user;
	f->traced = flags & SL_F_TRACE;
	f->tx_fin = flags & SL_F_FIN;
	if (sl_flow_open_on(l, f, NULL, 0, msg, len, flags)) {
		sl_flow_unmake(f);
		return -EAGAIN;
	}
	*ret = f;
	if (sl_unlikely(e->draining))
		sl_flow_drain(f);
	return 0;
}

int sl_flow_open(struct sl_edge *e, uint64_t request_id, const void *msg, uint32_t len, uint32_t flags, void *user,
		 struct sl_flow **ret)
{
	struct sl_link *l = sl_select_best_vm(e);

	if (l)
		return open_at(l, request_id, msg, len, flags & (SL_F_FIN | SL_F_TRACE), user, ret);
	e->ops->count(e, SL_CNT_NO_ROUTE);
	return -ENETUNREACH;
}

int sl_flow_take_over(struct sl_edge *e, uint16_t vm_id, uint64_t request_id, const void *msg, uint32_t len, void *user,
		      struct sl_flow **ret)
{
	for (unsigned i = 0; i < e->nb_up; i++)
		if (e->up[i]->vm_id == vm_id && !e->up[i]->quarantined)
			return open_at(e->up[i], request_id, msg, len, SL_F_MOVE, user, ret);
	return -ENETUNREACH;
}

void sl_flows_serve(struct sl_link *l)
{
	struct sl_list todo;

	sl_list_take(&todo, &l->waiting);
	while (!sl_list_empty(&todo)) {
		struct sl_flow *f = sl_container_of(todo.next, struct sl_flow, wait_node);

		if (sl_link_room(l) <= (f->owed ? 0 : ROOM_FOR_CONTROL) ||
		    (!f->owed && !l->edge->nb_free_small && !l->edge->nb_free_big))
			break;
		sl_list_unlink(&f->wait_node);
		if (f->owed && !owed_send(f)) {
			sl_flow_wait(f);
			break;
		}
		if (f->state == FLOW_OPEN && f->blocked) {
			f->blocked = false;
			f->ops->writable(f);
		}
	}
	/* who did not get a turn stays in front of those that began to wait just now */
	while (!sl_list_empty(&todo)) {
		struct sl_list *node = todo.prev;

		sl_list_unlink(node);
		sl_list_append(l->waiting.next, node);
	}
}
