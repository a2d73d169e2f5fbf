/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of an edge: a pair of instances whose layers record what they are told. */
#ifndef SL_EDGE_RIG_H
#define SL_EDGE_RIG_H

#include "pair.h"

/* What a layer was told, and how it answers. */
struct seen {
	struct sl_flow *flow;
	uint8_t bytes[1 << 20];
	uint32_t len, take;          /* take: bytes that data() may still take, UINT32_MAX = all */
	unsigned opens, fins, overs, writables, drains;
	enum sl_request_status status;
	bool unseen, echo;
};

extern struct seen front, back;
extern const struct sl_flow_ops back_ops;

/* cmocka's set-up and teardown: *state is a struct pair, front and back are as new. A test may call them between its cases. */
int edge_setup(void **state);
int edge_teardown(void **state);

struct sl_flow *flow_open(struct pair *p);           /* by the front, with "hello" */
void slots_all_back(const struct pair *p);           /* asserts that no slot of either side is in use */

#endif
