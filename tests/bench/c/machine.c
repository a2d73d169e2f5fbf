/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine itself can do, to compare with: one cache line, and whole blocks, from core to core. */
#include <stdio.h>
#include <sys/mman.h>

#include "base/atomic.h"
#include "base/base.h"
#include "rig.h"

enum { ROUNDS = 4096, LINES = 8, BLOCKS = 128, ARENA = 4 << 20 };
_Static_assert(sizeof(((struct rig_shared *)0)->result) == 2 * LINES * sizeof(struct rig_word), "lines for both ways");
_Static_assert(BLOCKS * SL_BIG_LEN <= ARENA, "every block has a place");

static void line_side(struct rig *r, unsigned i, void *arg)
{
	__u64 *ball = (__u64 *)&r->shared->ball.v;
	uint64_t turn = 0, begin, end, nb = 0, best = UINT64_MAX;

	(void)arg;
	rig_meet(r, 2);
	begin = sl_now_ns();
	end = begin + (uint64_t)(r->seconds * 1e9);
	while (i ? !sl_peek_u64((__u64 *)&r->shared->stop.v) : sl_now_ns() < end) {
		begin = sl_now_ns();
		for (nb = 0; nb < ROUNDS; nb++, turn += 2) {
			if (!i)
				sl_publish_u64(ball, turn + 1);
			while (sl_observe_u64(ball) != turn + 1 + !i)
				if (i && sl_peek_u64((__u64 *)&r->shared->stop.v))
					return;
			if (i)
				sl_publish_u64(ball, turn + 2);
		}
		best = sl_min(best, sl_now_ns() - begin);
	}
	sl_post_u64((__u64 *)&r->shared->stop.v, 1);
	/* the least disturbed batch: this is a property of the machine. Two transfers make a round */
	printf("%.1f\n", (double)best / ROUNDS / 2);
	fflush(stdout);
}

void bench_line(struct rig *r)
{
	rig_run(r, 2, line_side, NULL);
}

/* A round trip of the edge's layout and nothing else: each way one line, a new one each time as in a ring, and the full
 * fence between publishing and looking whether the receiver sleeps. What is above it is ours to mend, what is in it is
 * the layout's. It costs more than two transfers of the ball's line: that one is handed over to be written by whoever
 * reads it; a line that goes one way must be taken back first, and then be read. */
static void layout_side(struct rig *r, unsigned i, void *arg)
{
	struct rig_word *entries[2] = {r->shared->result, r->shared->result + LINES};
	__u64 *stop = (__u64 *)&r->shared->stop.v;
	uint64_t turn = 0, begin, end, best = UINT64_MAX;

	(void)arg;
	rig_meet(r, 2);
	end = sl_now_ns() + (uint64_t)(r->seconds * 1e9);
	while (i ? !sl_peek_u64(stop) : sl_now_ns() < end) {
		begin = sl_now_ns();
		for (unsigned nb = 0; nb < ROUNDS; nb++) {
			turn++;
			for (unsigned way = 0; way < 2; way++) {
				__u64 *entry = (__u64 *)&entries[way][turn % LINES].v;

				if (way == i) {
					sl_publish_u64(entry, turn);
					sl_full_fence();
					continue;
				}
				while (sl_observe_u64(entry) != turn)
					if (i && sl_peek_u64(stop))
						return;
			}
		}
		best = sl_min(best, sl_now_ns() - begin);
	}
	sl_post_u64(stop, 1);
	printf("%.1f\n", (double)best / ROUNDS);
	fflush(stdout);
}

void bench_layout(struct rig *r)
{
	rig_run(r, 2, layout_side, NULL);
}

/* Both sides of the bare stream keep only a count each, in lines of their own. */
static void stream_side(struct rig *r, unsigned i, void *arg)
{
	__u64 *written = (__u64 *)&r->shared->ball.v, *read = (__u64 *)&r->shared->echo.v;
	__u64 *stop = (__u64 *)&r->shared->stop.v;
	uint64_t n = 0, begin = sl_now_ns(), end = begin + (uint64_t)(r->seconds * 1e9), now = begin;
	uint8_t *blocks = arg;

	rig_meet(r, 2);
	while (i ? now < end : !sl_peek_u64(stop)) {
		uint8_t *block = blocks + n % BLOCKS * SL_BIG_LEN;

		if (i ? sl_observe_u64(written) == n : n - sl_observe_u64(read) == BLOCKS) {
			now = sl_now_ns();
			sl_relax();
			continue;
		}
		if (i)
			rig_payload_read(r, block);
		else
			rig_payload_write(r, block, n);
		sl_publish_u64(i ? read : written, ++n);
		if (n % 64 == 0)
			now = sl_now_ns();
	}
	sl_post_u64(stop, 1);
	if (i) {
		printf("%.1f\n", (double)(n * r->len) * 1e9 / (double)(now - begin));
		fflush(stdout);
	}
}

/* Prints the bytes/s that one core writes and the other reads when nothing else is done: what the machine gives an
 * edge. */
void bench_copy(struct rig *r)
{
	uint8_t *blocks = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (blocks == MAP_FAILED)
		blocks = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (blocks == MAP_FAILED)
		rig_fail("memory");
	memset(blocks, 0, ARENA);
	r->whole = true;
	rig_run(r, 2, stream_side, blocks);
}
