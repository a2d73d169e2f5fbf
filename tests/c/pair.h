/* SPDX-License-Identifier: Apache-2.0 */
/* Two instances on one edge inside one process: for tests and for programs that measure. */
#ifndef SL_TEST_PAIR_H
#define SL_TEST_PAIR_H

#include "edge/edge.h"

struct pair_side {
	struct sl_edge *edge;
	uint64_t counters[SL_CNT_MAX];
	uint64_t next_request;
	int doorbell;                /* eventfd of this side */
};

struct pair {
	int fd;
	struct sl_region g;
	struct pair_side front, back;
	struct sl_route_page to_back, to_front;
};

/* Makes a region of one front and one back peer (4 KiB pages), attaches both. geometry may be NULL. Aborts on
 * failure. */
void pair_open(struct pair *p, const struct sl_region *geometry, const struct sl_flow_ops *front, const struct sl_flow_ops *back);
void pair_close(struct pair *p);
/* One turn of both loops. Returns the work done. */
uint32_t pair_turn(struct pair *p);
/* Turns until nothing moves any more. */
void pair_settle(struct pair *p);

#endif
