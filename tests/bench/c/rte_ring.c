/* SPDX-License-Identifier: Apache-2.0 */
/* bench-rte-ring SECONDS [CAP]: entries/s through DPDK's rte_ring, single producer and consumer, 32-byte elements, burst 32: the same
 * two processes, cores, pages and checks as bench-edge ring. A ring alone needs no EAL. */
#include <rte_ring.h>
#include <rte_ring_elem.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/base.h"
#include "rig.h"

enum { CLOCK_EVERY = 256 };

static struct rte_ring *ring_make(unsigned cap)
{
	ssize_t len = rte_ring_get_memsize_elem(sizeof(struct sl_request_packet), cap);
	struct rte_ring *ring = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (ring == MAP_FAILED)
		ring = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (len < 0 || len > 2 << 20 || ring == MAP_FAILED || rte_ring_init(ring, "bench", cap, RING_F_SP_ENQ | RING_F_SC_DEQ))
		rig_fail("rte_ring");
	return ring;
}

static void sender(struct rig *r, struct rte_ring *ring)
{
	uint64_t next = 0;

	rig_meet(r, 2);
	while (!sl_peek_u64((__u64 *)&r->shared->stop.v)) {
		struct sl_request_packet p[RIG_BURST] = {0};
		unsigned sent;

		for (unsigned i = 0; i < RIG_BURST; i++)
			p[i] = (struct sl_request_packet){.request_id = next + i, .op = SL_OP_DATA};
		sent = rte_ring_sp_enqueue_burst_elem(ring, p, sizeof(p[0]), RIG_BURST, NULL);
		next += sent;
		if (!sent)
			sl_relax();
	}
}

static uint32_t take(struct rte_ring *ring, uint64_t *expected)
{
	struct sl_request_packet p[RIG_BURST];
	uint32_t nb = rte_ring_sc_dequeue_burst_elem(ring, p, sizeof(p[0]), RIG_BURST, NULL);
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < nb; i++)
		wrong |= p[i].request_id ^ (*expected + i);
	if (wrong)
		rig_fail("an element came twice, late or never");
	*expected += nb;
	return nb;
}

static void receiver(struct rig *r, struct rte_ring *ring)
{
	uint64_t expected = 0, first, begin, end, now, warm = 100000;

	rig_meet(r, 2);
	while (expected < warm)
		take(ring, &expected);
	begin = now = sl_now_ns();
	first = expected;
	for (end = begin + (uint64_t)(r->seconds * 1e9); now < end; now = sl_now_ns())
		for (unsigned i = 0; i < CLOCK_EVERY; i++)
			if (!take(ring, &expected))
				sl_relax();
	sl_post_u64((__u64 *)&r->shared->stop.v, 1);
	printf("%.1f\n", (double)(expected - first) * 1e9 / (double)(now - begin));
	fflush(stdout);
}

static void side(struct rig *r, unsigned i, void *arg)
{
	if (i)
		receiver(r, arg);
	else
		sender(r, arg);
}

int main(int argc, char **argv)
{
	struct rig r = {.seconds = argc > 1 ? atof(argv[1]) : 0};
	unsigned long cap = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;

	if (r.seconds <= 0) {
		fprintf(stderr, "usage: bench-rte-ring SECONDS [CAP]\n");
		return 2;
	}
	rig_open(&r);
	rig_run(&r, 2, side, ring_make(cap ? (unsigned)cap : SL_RING_CAP));
	return 0;
}
