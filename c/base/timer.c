/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timer.h"

#include "base/base.h"

void sl_wheel_init(struct sl_wheel *w, uint64_t now_ms)
{
	for (unsigned i = 0; i < SL_WHEEL_SLOTS; i++)
		sl_list_init(&w->slots[i]);
	w->tick = now_ms / SL_WHEEL_MS;
	w->now_ms = now_ms;
}

void sl_timer_arm(struct sl_wheel *w, struct sl_timer *t, uint64_t delay_ms)
{
	uint64_t tick;

	sl_list_unlink(&t->node);
	t->due_ms = w->now_ms + delay_ms;
	/* never into the slot that is being run: it would fire too early, or a whole turn late */
	tick = sl_max(t->due_ms / SL_WHEEL_MS + 1, w->tick + 1);
	sl_list_append(&w->slots[tick % SL_WHEEL_SLOTS], &t->node);
}

static void slot_run(struct sl_wheel *w, struct sl_list *slot)
{
	struct sl_list todo;

	sl_list_take(&todo, slot);   /* fire() may arm and cancel any timer */
	while (!sl_list_empty(&todo)) {
		struct sl_timer *t = sl_container_of(todo.next, struct sl_timer, node);

		sl_list_unlink(&t->node);
		if (t->due_ms <= w->now_ms)
			t->fire(t);
		else   /* due in a later turn of the wheel */
			sl_list_append(slot, &t->node);
	}
}

void sl_wheel_run(struct sl_wheel *w, uint64_t now_ms)
{
	uint64_t last = now_ms / SL_WHEEL_MS;

	w->now_ms = now_ms;
	if (last < w->tick)   /* this tick was run already */
		return;
	if (last - w->tick >= SL_WHEEL_SLOTS)   /* slept for more than a turn: each slot once is enough */
		w->tick = last - SL_WHEEL_SLOTS + 1;
	for (; w->tick <= last; w->tick++)
		slot_run(w, &w->slots[w->tick % SL_WHEEL_SLOTS]);
}
