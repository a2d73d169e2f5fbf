/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that writes what it likes into its rings: each violation is named and ends the ring, nothing outside the
 * guest's memory is touched (sanitizers), no word that decides is read twice. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sched.h>

#include <cmocka.h>

#include "test_vhost_rig.h"

enum { TO = 0, FROM = 1, SIZE = 8, FUZZ_ROUNDS = 20000 };

static uint8_t memory[32][GUEST_FRAME_MAX];
static struct sl_vq_buf bufs[32];
static struct guest g;

static uint32_t recv_all(void)
{
	uint32_t i, turn = 0;
	bool more;

	for (i = 0; i < 32; i++)
		bufs[i].data = memory[i];
	return sl_vhost_recv(&g.dev, bufs, 32, &turn, &more);
}

static int send_one(uint32_t len)
{
	static const uint8_t frame[GUEST_FRAME_MAX];
	struct iovec seg = { (void *)(uintptr_t)frame, len };
	int err = sl_vhost_send(&g.dev, 0, &seg, 1, len);

	sl_vhost_flush(&g.dev);
	return err;
}

/* What one descriptor can be wrong in. */
static const struct {
	const char *what;
	struct part part;
	enum sl_vhost_count why;
} lies[] = {
	{ "before the memory", { GUEST_GPA - 1, 100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "across its end", { GUEST_GPA + GUEST_LEN - 99, 100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "behind it", { GUEST_GPA + GUEST_LEN, 1, 0 }, SL_VHOST_RING_ADDRESS },
	{ "huge length", { GUEST_GPA, 0xffffffff, 0 }, SL_VHOST_RING_ADDRESS },
	{ "wraps around", { 0xffffffffffffffff, 100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "ends at 2^64", { 0xffffffffffffff00, 0x100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "null", { 0, 100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "front-end's address", { GUEST_UVA, 100, 0 }, SL_VHOST_RING_ADDRESS },
	{ "no length", { GUEST_GPA + GUEST_BUFS, 0, 0 }, SL_VHOST_RING_LENGTH },
	{ "indirect", { GUEST_GPA + GUEST_BUFS, 64, VRING_DESC_F_INDIRECT }, SL_VHOST_RING_FLAGS },
	{ "wrong direction", { GUEST_GPA + GUEST_BUFS, 100, VRING_DESC_F_WRITE }, SL_VHOST_RING_FLAGS },
};

static void test_descriptors(void **state)
{
	static const uint64_t features[] = { F_PLAIN, F_PLAIN | F_PACKED, F_PLAIN | F_MRG, F_PLAIN | F_PACKED | F_MRG };
	struct part good = { GUEST_GPA + GUEST_BUFS, 20, 0 };
	size_t i, f, second, dir;

	(void)state;
	for (f = 0; f < sl_nb(features); f++)
		for (i = 0; i < sl_nb(lies); i++)
			for (second = 0; second < 2; second++)
				for (dir = TO; dir <= FROM; dir++) {
					struct part parts[2] = { good, lies[i].part };

					guest_start(&g, features[f], SIZE, features[f] & F_PACKED ? 0x8000 : 0);
					if (dir == TO) {
						parts[0].flags ^= VRING_DESC_F_WRITE;
						parts[1].flags ^= VRING_DESC_F_WRITE;
					}
					post(&g, (uint32_t)dir, second ? parts : parts + 1, second ? 2 : 1);
					if (dir == TO)
						assert_int_equal(send_one(60), -EIO);
					else
						assert_int_equal(recv_all(), 0);
					assert_int_equal(g.dev.count[lies[i].why], 1);
					assert_int_equal(g.dev.ring[dir].vq.state, SL_VQ_BROKEN);
					/* nothing more happens there, and it is not counted again */
					assert_int_equal(recv_all(), 0);
					assert_int_equal(g.dev.count[lies[i].why], 1);
					guest_close(&g);
				}
}

static void test_split_indices(void **state)
{
	static const struct { uint16_t idx; bool ok; } jumps[] = {
		{ 0, true }, { SIZE + 1, false }, { 0x7fff, false }, { 0xffff, false },
	};
	uint16_t head;
	size_t i;

	(void)state;
	for (i = 0; i < sl_nb(jumps); i++) {
		guest_start(&g, F_PLAIN, SIZE, 0);
		avail_of(&g, FROM)->idx = jumps[i].idx;
		assert_int_equal(recv_all(), 0);
		assert_int_equal(g.dev.count[SL_VHOST_RING_JUMP], !jumps[i].ok);
		guest_close(&g);
	}
	for (head = SIZE; head; head = (uint16_t)(head * 2)) {
		guest_start(&g, F_PLAIN, SIZE, 0);
		avail_of(&g, FROM)->ring[0] = head;
		avail_of(&g, FROM)->idx = 1;
		assert_int_equal(recv_all(), 0);
		assert_int_equal(g.dev.count[SL_VHOST_RING_INDEX], 1);
		guest_close(&g);
	}
}

/* Chains that loop, leave the ring, or are too long. */
static void test_chains(void **state)
{
	static const uint16_t next[] = { 0, 1, SIZE, 0xffff };
	struct part parts[SL_VQ_SEGS + 1];
	size_t i;

	(void)state;
	for (i = 0; i < sl_nb(next); i++) {
		guest_start(&g, F_PLAIN, SIZE, 0);
		desc_of(&g, FROM)[0] = (struct vring_desc){ buf_gpa(0), 20, VRING_DESC_F_NEXT, next[i] };
		desc_of(&g, FROM)[1] = (struct vring_desc){ buf_gpa(0), 20, VRING_DESC_F_NEXT, 0 };
		avail_of(&g, FROM)->idx = 1;
		assert_int_equal(recv_all(), 0);
		assert_int_equal(g.dev.count[next[i] < SIZE ? SL_VHOST_RING_CHAIN : SL_VHOST_RING_INDEX], 1);
		guest_close(&g);
	}
	for (i = 0; i <= SL_VQ_SEGS; i++)
		parts[i] = (struct part){ buf_gpa(0), 20, 0 };
	for (i = 0; i < 2; i++) {
		guest_start(&g, F_PLAIN | (i ? F_PACKED : 0), 64, i ? 0x8000 : 0);
		post(&g, FROM, parts, SL_VQ_SEGS);
		assert_int_equal(recv_all(), 1);
		post(&g, FROM, parts, SL_VQ_SEGS + 1);
		assert_int_equal(recv_all(), 0);
		assert_int_equal(g.dev.count[SL_VHOST_RING_CHAIN], 1);
		guest_close(&g);
	}
	/* packed: every slot of a small ring says "next" */
	guest_start(&g, F_PLAIN | F_PACKED, 4, 0x8000);
	for (i = 0; i < 4; i++)
		slots_of(&g, FROM)[i] = (struct vring_packed_desc){
			buf_gpa(0), 20, 0, VRING_DESC_F_NEXT | 1 << VRING_PACKED_DESC_F_AVAIL,
		};
	assert_int_equal(recv_all(), 0);
	assert_int_equal(g.dev.count[SL_VHOST_RING_CHAIN], 1);
	guest_close(&g);
}

/* What was taken before the violation is given back, and the count of it is what GET_VRING_BASE says. */
static void test_break_in_a_burst(void **state)
{
	struct sl_vu_state s = { FROM, 0 };
	struct sl_vu_msg answer;
	uint16_t id;
	uint32_t len, i;

	(void)state;
	for (i = 0; i < 2; i++) {
		guest_start(&g, F_PLAIN | (i ? F_PACKED : 0), SIZE, i ? 0x8000 : 0);
		post_frame(&g, FROM, 0, 60, 1);
		post_frame(&g, FROM, 1, 60, 2);
		post(&g, FROM, &(struct part){ 0, 60, 0 }, 1);
		assert_int_equal(recv_all(), 2);
		assert_true(take_used(&g, FROM, &id, &len, 1));
		assert_true(take_used(&g, FROM, &id, &len, 1));
		assert_false(take_used(&g, FROM, &id, &len, 1));
		assert_int_equal(say(&g, SL_VU_GET_VRING_BASE, &s, sizeof(s), NULL, 0, &answer), 1);
		assert_int_equal(answer.body.state.num & 0x7fff, 2);
		/* the driver resets, and is served again */
		avail_of(&g, FROM)->idx = 0;
		used_of(&g, FROM)->idx = 0;
		memset(slots_of(&g, FROM), 0, SIZE * 16);
		guest_ring_start(&g, FROM, SIZE, i, i ? 0x8000 : 0);
		post_frame(&g, FROM, 0, 60, 1);
		assert_int_equal(recv_all(), 1);
		guest_close(&g);
	}
}

/* Random bytes in rings, descriptors and buffers, in all layouts: survives, does bounded work. */
static void test_random(void **state)
{
	uint32_t round, i, k;

	(void)state;
	srand(1);
	for (round = 0; round < FUZZ_ROUNDS; round++) {
		if (round % 500 == 0) {
			uint64_t f = F_PLAIN | (rand() & 1 ? F_PACKED : 0) | (rand() & 1 ? F_EVENT : 0) | (rand() & 1 ? F_MRG : 0);

			if (round)
				guest_close(&g);
			guest_start(&g, f, SIZE, f & F_PACKED ? 0x8000 : 0);
		}
		for (i = 0; i < 2; i++) {
			struct part parts[3];

			if (g.dev.ring[i].vq.state == SL_VQ_BROKEN) {
				say_state(&g, SL_VU_GET_VRING_BASE, i, 0);
				memset(g.mem + g.ring[i].off, 0, SIZE * 16);
				avail_of(&g, i)->idx = used_of(&g, i)->idx = 0;
				guest_ring_start(&g, i, SIZE, g.ring[i].packed, g.ring[i].packed ? 0x8000 : 0);
			}
			for (k = 0; k < 3; k++)
				parts[k] = (struct part){
					rand() % 20 ? buf_gpa((uint32_t)rand() % 16) : GUEST_GPA + (uint32_t)rand(),
					rand() % 20 ? 1 + (uint32_t)rand() % 2048 : (uint32_t)rand(),
					(uint16_t)((i == TO ? VRING_DESC_F_WRITE : 0) | (rand() % 40 ? 0 : rand())),
				};
			post(&g, i, parts, 1 + (uint32_t)rand() % 3);
			if (rand() % 10 == 0)
				g.mem[g.ring[i].off + (uint32_t)rand() % (SIZE * 16)] = (uint8_t)rand();
			if (rand() % 50 == 0)
				avail_of(&g, i)->idx = (uint16_t)rand();
		}
		recv_all();
		send_one(14 + (uint32_t)rand() % 3000);
		sl_vhost_arm(&g.dev);
	}
	guest_close(&g);
}

/* ---- while it is read -------------------------------------------------------------------------------------------- */

struct rewriter {
	uint8_t *from;
	uint32_t len;
	bool stop;
};

static void *rewrite(void *arg)
{
	struct rewriter *w = arg;
	uint32_t seed = 1;

	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
		seed = seed * 1664525 + 1013904223;
		/* lengths and flags that are good and bad in turn */
		w->from[(seed >> 8) % w->len] ^= (uint8_t)(1u << (seed >> 29));
	}
	return NULL;
}

/* Another thread changes descriptors all the time: whatever is accepted stays inside (sanitizers, guard by region). */
static void test_changing_while_read(void **state)
{
	uint32_t round, kind;

	(void)state;
	for (kind = 0; kind < 2; kind++) {
		struct rewriter w = { .len = SIZE * 16 };
		pthread_t thread;

		guest_start(&g, F_PLAIN | (kind ? F_PACKED : 0), SIZE, kind ? 0x8000 : 0);
		w.from = g.mem + g.ring[FROM].off;
		assert_int_equal(pthread_create(&thread, NULL, rewrite, &w), 0);
		for (round = 0; round < 3000; round++) {
			if (g.dev.ring[FROM].vq.state == SL_VQ_BROKEN) {
				say_state(&g, SL_VU_GET_VRING_BASE, FROM, 0);
				avail_of(&g, FROM)->idx = used_of(&g, FROM)->idx = 0;
				guest_ring_start(&g, FROM, SIZE, kind, kind ? 0x8000 : 0);
			}
			post_frame(&g, FROM, round % 16, 200, (uint8_t)round);
			recv_all();
			if (round % 64 == 0)
				sched_yield();
		}
		w.stop = true;
		pthread_join(thread, NULL);
		guest_close(&g);
	}
}

#ifdef SL_COUNT_READS
static const uint8_t *counted_from;
static uint32_t counted_len;
static uint8_t counted[SIZE * 16];

void sl_read_note(const void *p, __u32 len)
{
	uint64_t off = (uint64_t)((const uint8_t *)p - counted_from);

	if (counted_from && off < counted_len)
		while (len--)
			counted[off++]++;
}

/* A build that counts reads: no byte of a descriptor is read twice. */
static void test_no_second_read(void **state)
{
	uint32_t kind, i;

	(void)state;
	for (kind = 0; kind < 2; kind++) {
		guest_start(&g, F_PLAIN | (kind ? F_PACKED : 0), SIZE, kind ? 0x8000 : 0);
		memset(counted, 0, sizeof(counted));
		for (i = 0; i < SIZE; i++)
			post_frame(&g, FROM, i, 60, 1);
		counted_from = (const uint8_t *)g.dev.ring[FROM].vq.desc;
		counted_len = sizeof(counted);
		assert_int_equal(recv_all(), SIZE);
		counted_from = NULL;
		for (i = 0; i < sizeof(counted); i++)
			/* a full packed ring: its first slot's flags are looked at again, one lap later */
			assert_true(counted[i] == 1 || (kind && i >= 14 && i < 16 && counted[i] == 2));
		guest_close(&g);
	}
}
#endif

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_descriptors), cmocka_unit_test(test_split_indices), cmocka_unit_test(test_chains),
		cmocka_unit_test(test_break_in_a_burst), cmocka_unit_test(test_random),
		cmocka_unit_test(test_changing_while_read),
#ifdef SL_COUNT_READS
		cmocka_unit_test(test_no_second_read),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
