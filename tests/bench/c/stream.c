/* SPDX-License-Identifier: Apache-2.0 */
/* Throughput from core to core, and the round trip when both poll. */
#include <stdio.h>
#include <stdlib.h>

#include "base/atomic.h"
#include "base/base.h"
#include "rig.h"

enum { CLOCK_EVERY = 256, RTT_BATCH = 64, RTT_MAX = 1 << 16 };

/* --- one way --- */

/* Looks at the receiver's line only when it must. */
static void make_room(struct sl_link *l)
{
	if (sl_link_room(l) < RIG_BURST)
		sl_link_reap(l);
}

static void sender(struct rig *r, const struct rig_edge *edge)
{
	struct sl_edge *e = rig_attach(r, edge, SL_FRONT, 0);
	struct sl_link *l = e->up[0];
	uint64_t next = 0;

	rig_meet(r, 2);
	while (!sl_peek_u64((__u64 *)&r->shared->stop.v)) {
		make_room(l);
		if (!rig_send(r, e, &next, RIG_BURST)) {
			sl_link_reap(l);   /* no slot left */
			sl_relax();
		}
		sl_signal_vm(e);
	}
}

/* Takes one burst in; every entry must be the next one. */
static uint32_t take(struct rig *r, struct sl_edge *e, uint64_t *expected)
{
	struct sl_request_packet p[RIG_BURST];
	uint32_t seq, nb = sl_link_recv(e->up[0], p, RIG_BURST, &seq);
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < nb; i++) {
		wrong |= p[i].request_id ^ (*expected + i);
		if (r->len)
			wrong |= rig_payload_read(r, sl_payload(e, &p[i])) ^ (*expected + i);
	}
	if (!nb)
		return 0;
	if (wrong)
		rig_fail("an entry came twice, late or never");
	*expected += nb;
	sl_link_complete(e->up[0], seq, nb, SL_COMPLETED);
	sl_signal_vm(e);
	return nb;
}

static void receiver(struct rig *r, const struct rig_edge *edge)
{
	struct sl_edge *e = rig_attach(r, edge, SL_BACK, 0);
	uint64_t expected = 0, first, begin, end, now, warm = 100000;

	rig_meet(r, 2);
	while (expected < warm)
		take(r, e, &expected);
	begin = now = sl_now_ns();
	first = expected;
	for (end = begin + (uint64_t)(r->seconds * 1e9); now < end; now = sl_now_ns())
		for (unsigned i = 0; i < CLOCK_EVERY; i++)
			if (!take(r, e, &expected))
				sl_relax();
	sl_post_u64((__u64 *)&r->shared->stop.v, 1);
	printf("%.1f\n", (double)(expected - first) * 1e9 / (double)(now - begin));
	fflush(stdout);
}

static void ring_side(struct rig *r, unsigned i, void *arg)
{
	if (i)
		receiver(r, arg);
	else
		sender(r, arg);
}

void bench_ring(struct rig *r)
{
	struct rig_edge edge;

	rig_edge_make(r, &edge, SL_LAYER_USER, 1);
	rig_run(r, 2, ring_side, &edge);
}

/* --- there and back --- */

static int by_value(const void *a, const void *b)
{
	return *(const float *)a < *(const float *)b ? -1 : *(const float *)a > *(const float *)b;
}

static void turn_around(struct rig *r, struct sl_edge *e)
{
	uint64_t next = 0;

	while (!sl_peek_u64((__u64 *)&r->shared->stop.v)) {
		struct sl_request_packet p;
		uint32_t seq;

		if (!sl_link_recv(e->up[0], &p, 1, &seq))
			continue;
		sl_link_complete(e->up[0], seq, 1, SL_COMPLETED);
		rig_send(r, e, &next, 1);
		sl_signal_vm(e);
		make_room(e->up[0]);
	}
}

static void ping(struct rig *r, struct sl_edge *e, uint64_t *next)
{
	struct sl_request_packet p;
	uint32_t seq;

	rig_send(r, e, next, 1);
	sl_signal_vm(e);
	while (!sl_link_recv(e->up[0], &p, 1, &seq))
		;
	sl_link_complete(e->up[0], seq, 1, SL_COMPLETED);   /* published with the next entry */
	make_room(e->up[0]);
}

static void rtt_side(struct rig *r, unsigned i, void *arg)
{
	struct sl_edge *e = rig_attach(r, arg, i ? SL_BACK : SL_FRONT, 0);
	uint64_t next = 0, end;
	float *took = calloc(RTT_MAX, sizeof(*took));
	unsigned nb = 0;

	if (!took)
		rig_fail("memory");
	rig_meet(r, 2);
	if (i) {
		turn_around(r, e);
		return;
	}
	for (end = sl_now_ns() + (uint64_t)(r->seconds * 1e9); sl_now_ns() < end && nb < RTT_MAX; nb++) {
		uint64_t begin = sl_now_ns();

		for (unsigned k = 0; k < RTT_BATCH; k++)
			ping(r, e, &next);
		took[nb] = (float)(sl_now_ns() - begin) / RTT_BATCH;
	}
	sl_post_u64((__u64 *)&r->shared->stop.v, 1);
	qsort(took, nb, sizeof(*took), by_value);
	printf("%.1f\n", (double)took[nb / 2]);
	fflush(stdout);
}

void bench_rtt(struct rig *r)
{
	struct rig_edge edge;

	rig_edge_make(r, &edge, SL_LAYER_USER, 1);
	rig_run(r, 2, rtt_side, &edge);
}
