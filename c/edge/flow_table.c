/* SPDX-License-Identifier: Apache-2.0 */
/* Flows by their identity: the tables of both sides, and the pool. */
#include <stdlib.h>

#include "base/base.h"
#include "edge/flow_private.h"

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
		sl_pieces_free(&f->backlog);
		sl_pieces_free(&f->kept);
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
	list_free(&e->orphans);
	list_free(&e->pool);
	free(e->table);
	free(e->generation);
	free(e->free_index);
}

struct sl_flow *sl_flow_new(struct sl_link *l, uint64_t request_id)
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
	f->sent_end = l->tx.prod;
	sl_list_init(&f->wait_node);
	sl_list_append(&l->flows, &f->link_node);
	return f;
}

static uint32_t index_of(const struct sl_flow *f)
{
	return f->flow_id & SL_FLOW_INDEX_MASK;
}

void sl_flow_id_release(struct sl_flow *f)
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

void sl_flow_unmake(struct sl_flow *f)
{
	sl_list_unlink(&f->link_node);
	sl_list_append(&f->edge->pool, &f->link_node);
}

void sl_flow_bury(struct sl_flow *f)
{
	if (f->state != FLOW_OVER) {
		sl_flow_id_release(f);
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

		sl_flow_bury(f);
		f->ops->over(f, SL_COMPLETED);
	}
}

void sl_flows_turn_end(struct sl_edge *e)
{
	while (!sl_list_empty(&e->dead)) {
		struct sl_flow *f = sl_container_of(e->dead.next, struct sl_flow, link_node);

		sl_list_unlink(&f->link_node);
		sl_pieces_free(&f->backlog);
		sl_pieces_free(&f->kept);
		sl_list_append(&e->pool, &f->link_node);
	}
}

uint32_t sl_flow_index_take(struct sl_edge *e, struct sl_flow *f)
{
	uint32_t i = e->free_index[--e->nb_free_index];

	e->table[i] = f;
	/* 12 bits of generation: an entry of a former flow with this index is told apart */
	e->generation[i]++;
	return e->generation[i] << SL_FLOW_INDEX_BITS | i;
}

struct sl_flow *sl_flow_find(const struct sl_link *l, uint32_t flow_id)
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

bool sl_flow_index_room(struct sl_link *l, uint32_t i)
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
