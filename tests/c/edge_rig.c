/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/base.h"
#include "edge_rig.h"

struct seen front, back;

static uint32_t seen_data(struct seen *s, struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	uint32_t n = sl_min(len, s->take);

	if (s->echo)
		n = sl_flow_write(f, p, n);
	assert_true(s->len + n <= sizeof(s->bytes));
	memcpy(s->bytes + s->len, p, n);
	s->len += n;
	if (s->take != UINT32_MAX)
		s->take -= n;
	return n;
}

static void seen_over(struct seen *s, struct sl_flow *f, enum sl_request_status status)
{
	s->overs++;
	s->status = status;
	s->unseen = f->unseen;
	s->flow = NULL;
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len) { return seen_data(&front, f, p, len); }
static void front_fin(struct sl_flow *f) { (void)f; front.fins++; }
static void front_writable(struct sl_flow *f) { (void)f; front.writables++; }
static void front_over(struct sl_flow *f, enum sl_request_status s) { seen_over(&front, f, s); }
static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len) { return seen_data(&back, f, p, len); }
static void back_writable(struct sl_flow *f) { back.writables++; sl_flow_resume(f); }
static void back_drain(struct sl_flow *f) { (void)f; back.drains++; }
static void back_over(struct sl_flow *f, enum sl_request_status s) { seen_over(&back, f, s); }

static void back_fin(struct sl_flow *f)
{
	back.fins++;
	if (back.echo)
		sl_flow_fin(f);
}

static int back_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	(void)fin;
	assert_int_equal(len, 5);
	assert_memory_equal(msg, "hello", 5);
	back.opens++;
	back.flow = f;
	return 0;
}

static const struct sl_flow_ops front_ops = {.data = front_data, .fin = front_fin, .writable = front_writable, .over = front_over};
const struct sl_flow_ops back_ops = {
	.open = back_open, .data = back_data, .fin = back_fin, .writable = back_writable, .over = back_over, .drain = back_drain,
};

int edge_setup(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));

	memset(&front, 0, sizeof(front));
	memset(&back, 0, sizeof(back));
	front.take = back.take = UINT32_MAX;
	pair_open(p, NULL, &front_ops, &back_ops);
	*state = p;
	return 0;
}

int edge_teardown(void **state)
{
	pair_close(*state);
	free(*state);
	return 0;
}

struct sl_flow *flow_open(struct pair *p)
{
	assert_int_equal(sl_flow_open(p->front.edge, 0, "hello", 5, 0, NULL, &front.flow), 0);
	return front.flow;
}

void slots_all_back(const struct pair *p)
{
	assert_int_equal(p->front.edge->nb_free_small, p->g.nb_small);
	assert_int_equal(p->front.edge->nb_free_big, p->g.nb_big);
	assert_int_equal(p->back.edge->nb_free_small, p->g.nb_small);
	assert_int_equal(p->back.edge->nb_free_big, p->g.nb_big);
}
