/* SPDX-License-Identifier: Apache-2.0 */
/* Flows: identity, windows, backpressure, end. The protocol is in abi/packet.h, the rules for layers in flow.h.
 *
 * state   OPEN -> OVER. A flow that is OVER is in no table and no list but e->dead; it is freed at the end of the turn, except while it
 *         owes a RESET or bytes to its layer:
 *   - owed control entries (no ring space when they were due) keep it in link->waiting until they are sent;
 *   - detached: both FINs have passed, so the peer may reuse the flow_id, but the layer has not taken the last bytes yet. */
#include <stdlib.h>

#include "base/atomic.h"
#include "base/base.h"
#include "edge/edge.h"

enum {
	FLOWS_MAX = 65536,                    /* flows that one front peer may have open on an edge */
	CREDIT_STEP = SL_FLOW_WINDOW / 4,     /* bytes taken before a WINDOW is worth an entry */
	ROOM_FOR_CONTROL = 8,                 /* entries of a ring that DATA and OPEN leave to WINDOW, FIN and RESET */
};
enum { FLOW_OPEN = 1, FLOW_DETACHED = 2, FLOW_OVER = 3 };
enum { OWE_FIN = 1, OWE_WINDOW = 2, OWE_RESET = 4, OWE_DRAIN = 8 };

/* --- table and pool --- */

int sl_flows_init(struct sl_edge *e)
{
	if (e->side == SL_BACK)
		return 0;
	e->table_len = FLOWS_MAX;
	e->table = calloc(FLOWS_MAX, sizeof(*e->table));
	e->generation = calloc(FLOWS_MAX, sizeof(*e->generation));
	e->free_index = malloc(FLOWS_MAX * sizeof(*e->free_index));
	if (!e->table || !e->generation || !e->free_index)
		return -ENOMEM;
	for (uint32_t i = FLOWS_MAX; i-- > 0;)
		e->free_index[e->nb_free_index++] = i;
	return 0;
}

static void list_free(struct sl_list *head)
{
	while (head->next && !sl_list_empty(head)) {
		struct sl_flow *f = sl_container_of(head->next, struct sl_flow, link_node);

		sl_list_unlink(&f->link_node);
		free(f->backlog);
		free(f);
	}
}

void sl_flows_free(struct sl_edge *e)
{
	for (unsigned i = 0; e->links && i < e->nb_links; i++) {
		if (e->links[i].edge)
			list_free(&e->links[i].flows);
		free(e->links[i].by_index);
	}
	list_free(&e->done);
	list_free(&e->dead);
	list_free(&e->pool);
	free(e->table);
	free(e->generation);
	free(e->free_index);
}

static struct sl_flow *flow_new(struct sl_link *l, uint64_t request_id)
{
	struct sl_edge *e = l->edge;
	struct sl_flow *f;

	if (sl_list_empty(&e->pool)) {
		f = malloc(sizeof(*f));
		if (!f)
			return NULL;
	} else {
		f = sl_container_of(e->pool.next, struct sl_flow, link_node);
		sl_list_unlink(&f->link_node);
	}
	memset(f, 0, sizeof(*f));
	f->edge = e;
	f->link = l;
	f->ops = e->flow_ops;
	f->peer_vm = l->vm_id;
	f->request_id = request_id;
	f->tx_window = f->rx_window = SL_FLOW_WINDOW;
	f->state = FLOW_OPEN;
	sl_list_init(&f->wait_node);
	sl_list_append(&l->flows, &f->link_node);
	return f;
}

static uint32_t index_of(const struct sl_flow *f)
{
	return f->flow_id & SL_FLOW_INDEX_MASK;
}

/* The flow_id may be used again by the front peer from now on. */
static void id_release(struct sl_flow *f)
{
	struct sl_edge *e = f->edge;
	uint32_t i = index_of(f);

	if (e->side == SL_FRONT) {
		if (e->table[i] != f)
			return;
		e->table[i] = NULL;
		e->free_index[e->nb_free_index++] = i;
	} else if (i < f->link->by_index_len && f->link->by_index[i] == f) {
		f->link->by_index[i] = NULL;
	}
}

static void flow_bury(struct sl_flow *f)
{
	if (f->state != FLOW_OVER) {
		id_release(f);
		f->state = FLOW_OVER;
	}
	f->blocked = false;
	sl_list_unlink(&f->link_node);
	sl_list_unlink(&f->wait_node);
	sl_list_append(&f->edge->dead, &f->link_node);
}

void sl_flows_finish(struct sl_edge *e)
{
	while (!sl_list_empty(&e->done)) {
		struct sl_flow *f = sl_container_of(e->done.next, struct sl_flow, link_node);

		flow_bury(f);
		f->ops->over(f, SL_COMPLETED);
	}
}

void sl_flows_turn_end(struct sl_edge *e)
{
	while (!sl_list_empty(&e->dead)) {
		struct sl_flow *f = sl_container_of(e->dead.next, struct sl_flow, link_node);

		sl_list_unlink(&f->link_node);
		free(f->backlog);
		f->backlog = NULL;
		sl_list_append(&e->pool, &f->link_node);
	}
}

/* --- sending --- */

static int entry_send(struct sl_flow *f, uint8_t op, uint16_t flags, uint16_t status, uint32_t len, const struct sl_buf *buf)
{
	struct sl_request_packet p = {
		.request_id = f->request_id, .length = len, .flow_id = f->flow_id, .flags = flags, .status = status, .op = op,
	};

	return sl_route_request(f->link, &p, buf, op == SL_OP_OPEN ? &f->open_seq : NULL);
}

static void wait_for_room(struct sl_flow *f)
{
	if (sl_list_empty(&f->wait_node))
		sl_list_append(&f->link->waiting, &f->wait_node);
}

static void over_if_both_fins(struct sl_flow *f);

/* Sends what is owed. Returns false when the ring is full again. */
static bool owed_send(struct sl_flow *f)
{
	if ((f->owed & OWE_RESET)) {
		if (entry_send(f, SL_OP_RESET, 0, f->reset_status, 0, NULL))
			return false;
		f->owed = 0;
		flow_bury(f);
		return true;
	}
	if (f->owed & OWE_WINDOW) {
		if (entry_send(f, SL_OP_WINDOW, 0, 0, f->rx_credit, NULL))
			return false;
		f->rx_window += f->rx_credit;
		f->rx_credit = 0;
		f->owed &= (uint8_t)~OWE_WINDOW;
	}
	if (f->owed & OWE_DRAIN) {
		if (entry_send(f, SL_OP_DRAIN, 0, 0, 0, NULL))
			return false;
		f->owed &= (uint8_t)~OWE_DRAIN;
	}
	if (f->owed & OWE_FIN) {
		if (entry_send(f, SL_OP_DATA, SL_F_FIN, 0, 0, NULL))
			return false;
		f->owed &= (uint8_t)~OWE_FIN;
		over_if_both_fins(f);
	}
	return true;
}

static void owe(struct sl_flow *f, uint8_t what)
{
	f->owed |= what;
	if (!owed_send(f))
		wait_for_room(f);
}

uint32_t sl_flow_reserve(struct sl_flow *f, uint32_t want, struct sl_buf *buf)
{
	uint32_t len = sl_min(want, f->tx_window);

	if (f->state != FLOW_OPEN || f->tx_fin)
		return 0;
	if (!len) {
		f->blocked = true;   /* WINDOW will call */
		return 0;
	}
	if (sl_link_room(f->link) <= ROOM_FOR_CONTROL || sl_buf_alloc(f->edge, len, buf)) {
		f->blocked = true;
		wait_for_room(f);
		return 0;
	}
	return sl_min(len, buf->cap);
}

void sl_flow_commit(struct sl_flow *f, struct sl_buf *buf, uint32_t len, uint32_t flags)
{
	/* reserve made sure of the room, unless the flow ended or its layer filled the ring meanwhile */
	if (f->state != FLOW_OPEN || f->tx_fin || entry_send(f, SL_OP_DATA, flags & SL_F_FIN, 0, len, buf)) {
		sl_buf_free(f->edge, buf);
		if (f->state == FLOW_OPEN && !f->tx_fin)
			sl_flow_reset(f, SL_ERROR);
		return;
	}
	f->tx_window -= len;
	if (flags & SL_F_FIN) {
		f->tx_fin = true;
		over_if_both_fins(f);
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
	if (f->state != FLOW_OPEN || f->tx_fin)
		return;
	f->tx_fin = true;
	f->blocked = false;
	owe(f, OWE_FIN);
}

void sl_flow_drain(struct sl_flow *f)
{
	if (f->state != FLOW_OPEN || f->drained || f->edge->side != SL_FRONT)
		return;
	f->drained = true;
	owe(f, OWE_DRAIN);
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
	if (f->state == FLOW_DETACHED) {   /* the peer has forgotten it already */
		flow_bury(f);
		return;
	}
	id_release(f);
	f->state = FLOW_OVER;
	f->blocked = false;
	f->reset_status = (uint8_t)status;
	f->owed = 0;
	owe(f, OWE_RESET);
}

static uint32_t index_take(struct sl_edge *e, struct sl_flow *f)
{
	uint32_t i = e->free_index[--e->nb_free_index];

	e->table[i] = f;
	/* 12 bits of generation: an entry of a former flow with this index is told apart */
	e->generation[i]++;
	return e->generation[i] << SL_FLOW_INDEX_BITS | i;
}

int sl_flow_open(struct sl_edge *e, uint64_t request_id, const void *msg, uint32_t len, uint32_t flags, void *user,
		 struct sl_flow **ret)
{
	struct sl_link *l = sl_select_best_vm(e);
	struct sl_flow *f;
	struct sl_buf buf;

	if (!l) {
		e->ops->count(e, SL_CNT_NO_ROUTE);
		return -ENETUNREACH;
	}
	if (len > e->g.big_len)
		return -EMSGSIZE;
	if (sl_link_room(l) <= ROOM_FOR_CONTROL || !e->nb_free_index || sl_buf_alloc(e, len, &buf))
		return -EAGAIN;
	f = buf.cap < len ? NULL : flow_new(l, request_id ? request_id : e->ops->request_id(e));
	if (!f) {
		sl_buf_free(e, &buf);
		return -EAGAIN;
	}
	f->flow_id = index_take(e, f);
	f->user = user;
	f->traced = flags & SL_F_TRACE;
	f->tx_fin = flags & SL_F_FIN;
	memcpy(buf.data, msg, len);
	entry_send(f, SL_OP_OPEN, flags & (SL_F_FIN | SL_F_TRACE), 0, len, &buf);   /* there is room */
	*ret = f;
	if (sl_unlikely(e->draining))
		sl_flow_drain(f);
	return 0;
}

/* --- receiving --- */

static void over(struct sl_flow *f, enum sl_request_status status)
{
	if (f->state == FLOW_OVER)
		return;
	flow_bury(f);
	f->ops->over(f, status);
}

/* Both directions are closed: the flow_id is free for the next flow; the layer may still have bytes to take. over()
 * comes at the end of the turn, never from within a call that the layer itself makes. */
static void over_if_both_fins(struct sl_flow *f)
{
	if (f->state == FLOW_OPEN && f->tx_fin && f->rx_fin && !(f->owed & OWE_FIN)) {
		id_release(f);
		f->state = FLOW_DETACHED;
	}
	if (f->state == FLOW_DETACHED && !f->fin_due && !f->in_data && !sl_flow_backlog(f)) {
		sl_list_unlink(&f->link_node);
		sl_list_append(&f->edge->done, &f->link_node);
	}
}

static void credit(struct sl_flow *f, uint32_t taken)
{
	f->rx_credit += taken;
	if (f->state == FLOW_OPEN && !f->rx_fin && f->rx_credit >= CREDIT_STEP && !(f->owed & OWE_WINDOW))
		owe(f, OWE_WINDOW);
}

static bool backlog_add(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	if (f->backlog_pos) {
		memmove(f->backlog, f->backlog + f->backlog_pos, sl_flow_backlog(f));
		f->backlog_len -= f->backlog_pos;
		f->backlog_pos = 0;
	}
	/* at most SL_FLOW_WINDOW in all: the window bounds what the peer can make us keep */
	uint8_t *grown = realloc(f->backlog, f->backlog_len + len);

	if (!grown)
		return false;
	f->backlog = grown;
	memcpy(f->backlog + f->backlog_len, p, len);
	f->backlog_len += len;
	return true;
}

static void fin_deliver(struct sl_flow *f)
{
	if (!f->fin_due || sl_flow_backlog(f) || f->state == FLOW_OVER)
		return;
	f->fin_due = false;
	f->ops->fin(f);
	over_if_both_fins(f);
}

static void backlog_drop(struct sl_flow *f)
{
	free(f->backlog);
	f->backlog = NULL;
	f->backlog_pos = f->backlog_len = 0;
}

void sl_flow_resume(struct sl_flow *f)
{
	if (f->in_data || f->state == FLOW_OVER)
		return;
	while (sl_flow_backlog(f)) {
		uint32_t taken;

		f->in_data = true;
		taken = f->ops->data(f, f->backlog + f->backlog_pos, sl_flow_backlog(f));
		f->in_data = false;
		if (f->state == FLOW_OVER)
			return;
		f->backlog_pos += taken;
		credit(f, taken);
		if (!taken)
			return;
	}
	backlog_drop(f);
	fin_deliver(f);
	over_if_both_fins(f);
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
	if (taken < len && !backlog_add(f, p + taken, len - taken)) {
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
	if (p->length)
		data_deliver(f, sl_payload(f->edge, p), p->length);
	if (p->flags & SL_F_FIN) {
		fin_deliver(f);
		over_if_both_fins(f);
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

static struct sl_flow *flow_find(const struct sl_link *l, uint32_t flow_id)
{
	const struct sl_edge *e = l->edge;
	uint32_t i = flow_id & SL_FLOW_INDEX_MASK;
	struct sl_flow *f;

	if (e->side == SL_FRONT)
		f = i < e->table_len ? e->table[i] : NULL;
	else
		f = i < l->by_index_len ? l->by_index[i] : NULL;
	return f && f->flow_id == flow_id && f->link == l ? f : NULL;
}

static bool by_index_grow(struct sl_link *l, uint32_t i)
{
	uint32_t len = l->by_index_len ? l->by_index_len : 64;
	struct sl_flow **grown;

	if (i < l->by_index_len)
		return true;
	while (len <= i)
		len *= 2;
	grown = realloc(l->by_index, len * sizeof(struct sl_flow *));
	if (!grown)
		return false;
	memset(grown + l->by_index_len, 0, (len - l->by_index_len) * sizeof(struct sl_flow *));
	l->by_index = grown;
	l->by_index_len = len;
	return true;
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
	f = by_index_grow(l, i) ? flow_new(l, p->request_id) : NULL;
	if (!f) {
		sl_link_quarantine(l, SL_CNT_REFUSED);
		return;
	}
	l->by_index[i] = f;
	f->flow_id = p->flow_id;
	f->traced = p->flags & SL_F_TRACE;
	f->rx_fin = p->flags & SL_F_FIN;
	memcpy(e->scratch, sl_payload(e, p), p->length);
	sl_copied_once();
	f->in_data = true;   /* holds back over() until open() has returned */
	r = f->ops->open(f, e->scratch, p->length, f->rx_fin);
	f->in_data = false;
	if (r)
		open_refuse(f, r);
	else
		over_if_both_fins(f);
}

void sl_process_request(struct sl_link *l, const struct sl_request_packet *p)
{
	struct sl_flow *f;

	if (p->op == SL_OP_OPEN) {
		open_input(l, p);
		return;
	}
	f = flow_find(l, p->flow_id);
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
	case SL_OP_DRAIN:
		if (f->ops->drain && l->edge->side == SL_BACK)
			f->ops->drain(f);
		break;
	default:   /* RESET: the ring checked the range */
		over(f, p->status < SL_ERROR ? SL_ERROR : (enum sl_request_status)p->status);
	}
}

/* --- waiting and losing --- */

void sl_flows_serve(struct sl_link *l)
{
	struct sl_list todo;

	todo = l->waiting;
	todo.next->prev = todo.prev->next = &todo;
	sl_list_init(&l->waiting);
	while (!sl_list_empty(&todo)) {
		struct sl_flow *f = sl_container_of(todo.next, struct sl_flow, wait_node);

		if (sl_link_room(l) <= (f->owed ? 0 : ROOM_FOR_CONTROL) ||
		    (!f->owed && !l->edge->nb_free_small && !l->edge->nb_free_big))
			break;
		sl_list_unlink(&f->wait_node);
		if (f->owed && !owed_send(f)) {
			wait_for_room(f);
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

	sl_list_init(&todo);
	sl_list_append(&l->flows, &todo);   /* take all flows over: callbacks may end any of them */
	sl_list_unlink(&l->flows);
	while (!sl_list_empty(&todo)) {
		struct sl_flow *f = sl_container_of(todo.next, struct sl_flow, link_node);

		f->unseen = f->open_seq - pending < l->tx.prod - pending;
		f->owed = 0;
		if (f->state == FLOW_DETACHED) {   /* all that the peer had to say is here */
			sl_list_unlink(&f->link_node);
			sl_list_append(&l->flows, &f->link_node);
		} else if (f->state == FLOW_OVER) {   /* only owed its RESET */
			flow_bury(f);
		} else {
			over(f, status);
		}
	}
}
