/* SPDX-License-Identifier: Apache-2.0 */
/* What a device outlives: a peer that wants it to wait, memory that goes away, storms, and its own death in the middle of
 * a burst. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "test_vhost_rig.h"
#include "vhost/ring.h"
#include "vhost/storm.h"

enum { TO = 0, FROM = 1, LIMIT_S = 20 };

static struct guest g;

static uint32_t recv_some(struct guest *from)
{
	static uint8_t memory[4][GUEST_FRAME_MAX];
	struct sl_vq_buf bufs[4] = {{ .data = memory[0] }, { .data = memory[1] }, { .data = memory[2] }, { .data = memory[3] }};
	uint32_t turn = 0;
	bool more;

	return sl_vhost_recv(&from->dev, bufs, 4, &turn, &more);
}

/* ---- bell -------------------------------------------------------------------------------------------------------- */

static void test_bell_rings(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0), pipes[2];
	struct sl_bell b;
	uint64_t n;
	int i;

	(void)state;
	assert_int_equal(sl_bell_open(&b), 0);
	assert_int_equal(pipe(pipes), 0);
	assert_true(sl_bell_fits(&b, fd));
	assert_false(sl_bell_fits(&b, timer));
	assert_false(sl_bell_fits(&b, pipes[1]));
	assert_false(sl_bell_fits(&b, -1));
	assert_true(read(fd, &n, sizeof(n)) < 0);   /* asking rang nothing */
	for (i = 0; i < 1000; i++)
		sl_bell_ring(&b, fd);
	assert_int_equal(read(fd, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 1000);
	close(fd);
	close(timer);
	close(pipes[0]);
	close(pipes[1]);
	sl_bell_close(&b);
}

/* The guest's QEMU clears O_NONBLOCK, fills the counter, and would have us wait for ever: alarm() ends the test then. */
static void test_full_interrupt_does_not_wait(void **state)
{
	uint64_t full = UINT64_MAX - 1;
	int fd;

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	fd = g.ring[FROM].call;
	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
	calls(&g, FROM);
	assert_int_equal(write(fd, &full, sizeof(full)), sizeof(full));
	post_frame(&g, FROM, 0, 60, 1);
	alarm(LIMIT_S);
	assert_int_equal(recv_some(&g), 1);
	alarm(0);
	assert_int_equal(g.dev.count[SL_VHOST_CALLS], 1);
	guest_close(&g);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void test_memory_goes_away(void **state)
{
	struct sl_vu_table t = { .nb = 1, .region = {{ GUEST_GPA, GUEST_LEN, GUEST_UVA, 0 }} };
	int fd = memfd_create("unsealed", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(sl_guard_install(), 0);
	guest_open(&g, 1);
	g.dev.conf.unsealed_ok = true;   /* a sealed file can lose its pages only with the machine's last huge page */
	guest_setup(&g, F_PLAIN);
	assert_int_equal(ftruncate(fd, GUEST_LEN), 0);
	close(g.fd);
	g.fd = fd;
	munmap(g.mem, GUEST_LEN);
	g.mem = mmap(NULL, GUEST_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_int_equal(say(&g, SL_VU_SET_MEM_TABLE, &t, 8 + 32, &fd, 1, NULL), 0);
	guest_ring_start(&g, FROM, 8, false, 0);
	post_frame(&g, FROM, 0, 60, 1);
	assert_int_equal(recv_some(&g), 1);
	post_frame(&g, FROM, 1, 60, 1);
	assert_false(sl_vhost_memory_is_lost(&g.dev.mem));
	assert_int_equal(ftruncate(fd, 0), 0);
	recv_some(&g);
	assert_true(sl_vhost_memory_is_lost(&g.dev.mem));
	recv_some(&g);                   /* zeroes now */
	guest_close(&g);
}

/* ---- storms ------------------------------------------------------------------------------------------------------ */

static void test_storm_of_kicks(void **state)
{
	struct sl_vhost_storm s = { 0 };
	uint64_t n = SL_VHOST_KICKS_MAX;
	uint32_t i;

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
	for (i = 0; i < 100; i++) {       /* one for each frame is none */
		post_frame(&g, FROM, 0, 60, 1);
		eventfd_write(g.ring[FROM].kick, 1);
		sl_vhost_kicked(&g.dev, FROM);
		assert_int_equal(recv_some(&g), 1);
	}
	assert_int_equal(write(g.ring[FROM].kick, &n, sizeof(n)), sizeof(n));
	sl_vhost_kicked(&g.dev, FROM);
	assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
	eventfd_write(g.ring[FROM].kick, 1);
	sl_vhost_kicked(&g.dev, FROM);
	assert_int_equal(sl_vhost_storm_find(&s, &g.dev), SL_VHOST_STORM_KICKS);
	n = UINT64_MAX - 1;
	s = (struct sl_vhost_storm){ 0 };
	assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
	assert_int_equal(write(g.ring[FROM].kick, &n, sizeof(n)), sizeof(n));
	sl_vhost_kicked(&g.dev, FROM);
	assert_int_equal(sl_vhost_storm_find(&s, &g.dev), SL_VHOST_STORM_KICKS);
	guest_close(&g);
}

static void test_other_storms(void **state)
{
	static const struct { enum sl_vhost_count what, storm; uint32_t max; } storms[] = {
		{ SL_VHOST_MESSAGES, SL_VHOST_STORM_MESSAGES, SL_VHOST_MESSAGES_MAX },
		{ SL_VHOST_STARTS, SL_VHOST_STORM_RESETS, SL_VHOST_STARTS_MAX },
		{ SL_VHOST_LINK_LOST, SL_VHOST_STORM_LINKS, SL_VHOST_LINKS_MAX },
	};
	size_t i;

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	assert_true(g.dev.count[SL_VHOST_MESSAGES] > 10);
	assert_int_equal(g.dev.count[SL_VHOST_STARTS], 2);
	for (i = 0; i < sl_nb(storms); i++) {
		struct sl_vhost_storm s = { 0 };

		assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
		g.dev.count[storms[i].what] += storms[i].max;
		assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
		g.dev.count[storms[i].what]++;
		assert_int_equal(sl_vhost_storm_find(&s, &g.dev), storms[i].storm);
		s.begun_ns = sl_now_ns() - 2000000000;   /* another second */
		assert_int_equal(sl_vhost_storm_find(&s, &g.dev), -1);
	}
	guest_close(&g);
}

/* ---- killed ------------------------------------------------------------------------------------------------------ */

enum { SIZE = 7, CHAINS = 500 };

/* As packed_show begins the next one: the rest of its chain is marked, its first slot is not. */
static void half_show(struct sl_vq *q, const struct sl_vq_held *h)
{
	uint16_t slot = h->slot, n;
	bool wrap = h->wrap;

	for (n = 1; n < h->nb_slot; n++) {
		packed_step(q, &slot, &wrap, 1);
		q->slots[slot].flags = packed_used(wrap) | (q->slots[slot].flags & PACKED_REST);
	}
}

/* A new back-end takes what there is, gives all of it back, and dies when it has shown nb of them and a half. */
static void live_and_die(uint32_t nb)
{
	struct sl_vq_conf conf = {
		.desc = slots_of(&g, FROM), .driver = driver_event_of(&g, FROM), .device = device_event_of(&g, FROM),
		.size = SIZE, .packed = true, .bell = &g.bell, .call_fd = -1, .frame_max = GUEST_FRAME_MAX,
	};
	struct iovec seg[SL_VQ_SEGS];
	struct sl_vq q = { 0 };
	uint32_t nb_taken;

	assert_int_equal(sl_vq_start(&q, &conf, &g.dev.mem, g.dev.count), 0);
	for (;;) {
		struct sl_vq_chain c = { .seg = seg, .cap = SL_VQ_SEGS };
		int n = ring_take(&q, &c);

		assert_true(n >= 0);
		if (!n)
			break;
		assert_int_equal(*(uint8_t *)seg[0].iov_base, c.id);
		ring_put(&q, c.id, 0, c.nb_slot);
	}
	nb_taken = q.nb_held;
	if (nb < nb_taken)
		half_show(&q, &q.held[nb]);
	q.nb_held = sl_min(nb, nb_taken);
	packed_show(&q);
}

/* A back-end finds its place in a packed ring by the ring alone, wherever the one before was killed. Chains have one to
 * three slots. */
static void test_place_in_a_packed_ring(void **state)
{
	uint32_t free_slots = SIZE, sent = 0, back = 0, lives, nb, i, len;
	uint8_t nb_slot[CHAINS];
	struct guest_ring *r = &g.ring[FROM];
	uint16_t id;

	(void)state;
	guest_start(&g, F_PLAIN | F_PACKED, SIZE, 0x8000);
	srand(1);
	*guest_buf(&g, SIZE) = 0xff;         /* what is not the first part of a chain */
	for (lives = 0; back < CHAINS; lives++) {
		assert_true(lives < 4 * CHAINS);   /* else one of them got stuck */
		for (nb = 1 + (uint32_t)rand() % 3; sent < CHAINS && nb <= free_slots; nb = 1 + (uint32_t)rand() % 3) {
			struct part parts[3];

			for (i = 0; i < nb; i++)
				parts[i] = (struct part){ buf_gpa(i ? SIZE : r->next), 100, 0 };
			*guest_buf(&g, r->next) = (uint8_t)r->next;
			nb_slot[sent++] = (uint8_t)nb;
			free_slots -= nb;
			post(&g, FROM, parts, nb);
		}
		live_and_die((uint32_t)rand() % 4);
		while (back < sent && take_used(&g, FROM, &id, &len, nb_slot[back]))
			free_slots += nb_slot[back++];
	}
	guest_close(&g);
}

/* A driver uses fewer pairs than it is offered: frames are spread evenly over those. */
static void test_running_pairs_share(void **state)
{
	uint8_t frame[60] = { 0 };
	struct iovec seg = { frame, sizeof(frame) };
	uint32_t i;

	(void)state;
	guest_open(&g, 8);
	guest_setup(&g, F_PLAIN);
	assert_int_equal(sl_vhost_send(&g.dev, 0, &seg, 1, sizeof(frame)), -ENETDOWN);
	for (i = 0; i < 3; i++)
		guest_ring_start(&g, 2 * i, 8, false, 0);
	for (i = 0; i < 3 * 4; i++)
		post_free(&g, 2 * (i % 3), i, GUEST_BUF_LEN);
	for (i = 0; i < 3 * 4; i++)
		assert_int_equal(sl_vhost_send(&g.dev, i, &seg, 1, sizeof(frame)), 0);
	sl_vhost_flush(&g.dev);
	for (i = 0; i < 3; i++)
		assert_int_equal(used_of(&g, 2 * i)->idx, 4);
	guest_close(&g);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bell_rings), cmocka_unit_test(test_full_interrupt_does_not_wait),
		cmocka_unit_test(test_memory_goes_away), cmocka_unit_test(test_storm_of_kicks),
		cmocka_unit_test(test_other_storms), cmocka_unit_test(test_place_in_a_packed_ring),
		cmocka_unit_test(test_running_pairs_share),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
