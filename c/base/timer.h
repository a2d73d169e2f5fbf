/* SPDX-License-Identifier: Apache-2.0 */
/* Timer wheel for connection timeouts: coarse (one slot is SL_WHEEL_MS), O(1) to arm and cancel. One thread. */
#ifndef SL_TIMER_H
#define SL_TIMER_H

#include <stdint.h>

#include "base/list.h"

enum { SL_WHEEL_MS = 64, SL_WHEEL_SLOTS = 256 };

struct sl_timer {
	struct sl_list node;
	uint64_t due_ms;
	void (*fire)(struct sl_timer *t);   /* the timer is unarmed when it is called; may arm it again */
};

struct sl_wheel {
	struct sl_list slots[SL_WHEEL_SLOTS];
	uint64_t tick;                      /* first slot not yet run, in units of SL_WHEEL_MS */
	uint64_t now_ms;                    /* of the last sl_wheel_run */
};

void sl_wheel_init(struct sl_wheel *w, uint64_t now_ms);
/* Calls fire of all that are due. */
void sl_wheel_run(struct sl_wheel *w, uint64_t now_ms);

static inline void sl_timer_init(struct sl_timer *t, void (*fire)(struct sl_timer *))
{
	sl_list_init(&t->node);
	t->fire = fire;
}

/* (Re)arms t to fire in delay_ms, rounded up to the wheel. */
void sl_timer_arm(struct sl_wheel *w, struct sl_timer *t, uint64_t delay_ms);

static inline void sl_timer_cancel(struct sl_timer *t)
{
	sl_list_unlink(&t->node);
}

#endif
