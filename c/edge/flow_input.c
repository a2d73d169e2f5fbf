/* SPDX-License-Identifier: Apache-2.0 */
/* Flows, receiving: entries become callbacks; a peer that is lost ends its flows. */
#include <stdlib.h>

#include "base/atomic.h"
#include "base/base.h"
#include "edge/flow_private.h"

static void over(struct sl_flow *f, enum sl_request_status status)
{
	if (f->state == FLOW_OVER)
		return;
	sl_flow_bury(f);
	f->ops->over(f, status);
}

void sl_flow_over_if_both_fins(struct sl_flow *f)
{
	if (f->state == FLOW_OPEN && f->tx_fin && f->rx_fin && !(f->owed & OWE_FIN)) {
		sl_flow_id_release(f);
		f->state = FLOW_DETACHED;
	}
	if (f->state == FLOW_DETACHED && !f->fin_due && !f->in_data && !sl_flow_backlog(f)) {
		sl_list_unlink(&f->link_node);
		sl_list_append(&f->edge->done, &f->link_node);
	}
}

static void credit(struct sl_flow *f, uint32_t taken)
{
	uint32_t stale = sl_min(taken, f->rx_stale);

	f->rx_stale -= stale;
	f->rx_credit += taken - stale;
	if (f->state == FLOW_OPEN && !f->rx_fin && f->rx_credit >= CREDIT_STEP && !(f->owed & OWE_WINDOW))
		sl_flow_owe(f, OWE_WINDOW);
}

static void fin_deliver(struct sl_flow *f)
{
	if (!f->fin_due || sl_flow_backlog(f) || f->state == FLOW_OVER)
		return;
	f->fin_due = false;
	f->ops->fin(f);
	sl_flow_over_if_both_fins(f);
}

void sl_flow_resume(struct sl_flow *f)
{
	if (f->in_data || f->state == FLOW_OVER)
		return;
	while (sl_flow_backlog(f)) {
		uint32_t taken, at = 0, len;
		const uint8_t *p = sl_pieces_next(&f->backlog, &at, &len);

		f->in_data = true;
		taken = f->ops->data(f, p, len);
		f->in_data = false;
		if (f->state == FLOW_OVER)
			return;
		sl_pieces_drop(&f->backlog, taken);
		credit(f, taken);
		if (!taken)
			return;
	}
	fin_deliver(f);
	sl_flow_over_if_both_fins(f);
}

static void data_deliver(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	uint32_t taken = 0;

	f->rx_window -= len;
	if (!sl_flow_backlog(f) && !f->in_data) {
		f->in_data = true;
		taken = f->ops->data(f, p, len);
		f->in_data = false;
		if (f->state == FLOW_OVER)
			return;
		credit(f, taken);
	}
	/* at most SL_FLOW_WINDOW in all, twice that after a move: the window bounds what the peer can make us keep */
	f->backlog.cut = f->whole;
	if (taken < len && !sl_pieces_add(&f->backlog, p + taken, len - taken)) {
		sl_flow_reset(f, SL_ERROR);
		f->ops->over(f, SL_ERROR);
	}
}

static void data_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	if (f->rx_fin || p->length > f->rx_window) {
		sl_link_quarantine(f->link, SL_CNT_BAD_WINDOW);
		return;
	}
	if (p->flags & SL_F_FIN)
		f->rx_fin = f->fin_due = true;
	f->seen.got = p->request_id;
	if (p->length)
		data_deliver(f, sl_payload(f->edge, p), p->length);
	if (p->flags & SL_F_FIN) {
		fin_deliver(f);
		sl_flow_over_if_both_fins(f);
	}
}

static void window_input(struct sl_flow *f, const struct sl_request_packet *p)
{
	if (!p->length || p->length > SL_FLOW_WINDOW - f->tx_window) {
		sl_link_quarantine(f->link, SL_CNT_BAD_WINDOW);
		return;
	}
	f->tx_window += p->length;
	if (f->blocked && sl_list_empty(&f->wait_node)) {
		f->blocked = false;
		f->ops->writable(f);
	}
}

static void open_refuse(struct sl_flow *f, int status)
{
	f->edge->ops->count(f->edge, SL_CNT_REFUSED);
	sl_flow_reset(f, status < 0 ? (enum sl_request_status)-status : SL_ERROR_REFUSED);
}

static void open_input(struct sl_link *l, const struct sl_request_packet *p)
{
	struct sl_edge *e = l->edge;
	uint32_t i = p->flow_id & SL_FLOW_INDEX_MASK;
	struct sl_flow *f;
	int r;

	if (e->side != SL_BACK || i >= FLOWS_MAX || (i < l->by_index_len && l->by_index[i]) || !p->request_id) {
		sl_link_quarantine(l, SL_CNT_BAD_FLOW);
		return;
	}
	f = sl_flow_index_room(l, i) ? sl_flow_new(l, p->request_id) : NULL;
	if (!f) {
		sl_link_quarantine(l, SL_CNT_REFUSED);
		return;
	}
	l->by_index[i] = f;
	f->flow_id = p->flow_id;
	f->traced = p->flags & SL_F_TRACE;
	f->moved = p->flags & SL_F_MOVE;
	f->rx_fin = p->flags & SL_F_FIN;
	memcpy(e->scratch, sl_payload(e, p), p->length);
	sl_copied_once();
	f->in_data = true;   /* holds back over() until open() has returned */
	r = f->ops->open(f, e->scratch, p->length, f->rx_fin);
	f->in_data = false;
	if (r)
		open_refuse(f, r);
	else
		sl_flow_over_if_both_fins(f);
}

void sl_process_request(struct sl_link *l, const struct sl_request_packet *p)
{
	struct sl_flow *f;

	if (p->op == SL_OP_OPEN) {
		open_input(l, p);
		return;
	}
	f = sl_flow_find(l, p->flow_id);
	if (!f) {   /* it ended on our side while this was on its way */
		l->edge->ops->count(l->edge, SL_CNT_STALE_FLOW);
		return;
	}
	switch (p->op) {
	case SL_OP_DATA:
		data_input(f, p);
		break;
	case SL_OP_WINDOW:
		window_input(f, p);
		break;
	case SL_OP_RESET:
		if (!(p->flags & SL_F_MOVE || sl_flow_heard_all(f)) || !sl_flow_orphan(f))
			over(f, p->status < SL_ERROR ? SL_ERROR : (enum sl_request_status)p->status);
		break;
	default:
		sl_flow_move_input(f, p);
	}
}

/* The number of the first entry that the peer never took. Only a cons of this very pairing proves anything; a hostile
 * one at worst makes us repeat what the liar had begun itself. */
static uint32_t first_pending(const struct sl_link *l)
{
	uint32_t cons = sl_observe_u32(&l->tx.ring->cons);
	bool ours = sl_observe_u64(&l->tx.ring->cons_pair) == ((uint64_t)l->edge->incarnation << 32 | l->incarnation);

	return ours && cons - l->tx.oldest <= l->tx.prod - l->tx.oldest ? cons : l->tx.prod;
}

void sl_flows_link_lost(struct sl_link *l, enum sl_request_status status)
{
	uint32_t pending = first_pending(l);
	struct sl_list todo;

	sl_list_take(&todo, &l->flows);   /* callbacks may end any of them */
	while (!sl_list_empty(&todo)) {
		struct sl_flow *f = sl_container_of(todo.next, struct sl_flow, link_node);

		f->unseen = f->open_seq - pending < l->tx.prod - pending;
		f->owed = 0;
		if (f->state == FLOW_DETACHED) {   /* all that the peer had to say is here */
			sl_list_unlink(&f->link_node);
			sl_list_append(&l->flows, &f->link_node);
		} else if (f->state == FLOW_OVER) {   /* only owed its RESET */
			sl_flow_bury(f);
		} else if (!sl_flow_orphan(f)) {
			over(f, status);
		}
	}
}
