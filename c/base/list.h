/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive doubly linked list. An empty list and an unlinked node point to themselves, so unlinking twice is
 * harmless. */
#ifndef SL_LIST_H
#define SL_LIST_H

#include <stdbool.h>

struct sl_list {
	struct sl_list *next, *prev;
};

static inline void sl_list_init(struct sl_list *l)
{
	l->next = l->prev = l;
}

static inline bool sl_list_empty(const struct sl_list *l)
{
	return l->next == l;
}

static inline void sl_list_append(struct sl_list *head, struct sl_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void sl_list_unlink(struct sl_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	sl_list_init(node);
}

/* Moves all nodes of from to the list at to, whatever that held: for a walk whose steps may change from. */
static inline void sl_list_take(struct sl_list *to, struct sl_list *from)
{
	sl_list_init(to);
	if (sl_list_empty(from))
		return;
	*to = *from;
	to->next->prev = to->prev->next = to;
	sl_list_init(from);
}

#endif
