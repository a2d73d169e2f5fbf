/* SPDX-License-Identifier: Apache-2.0 */
/* Both kinds of rings with an honest driver: interrupts and kicks, stops and new starts, memory that moves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test_vhost_kinds.h"

/* ---- notification ------------------------------------------------------------------------------------------------ */

static void wish(struct guest *g, uint32_t index, bool wanted, uint16_t event)
{
	struct guest_ring *r = &g->ring[index];

	if (!r->packed && g->dev.features & F_EVENT) {
		avail_of(g, index)->ring[r->size] = wanted ? event : (uint16_t)(r->used + 0x7000);
	} else if (!r->packed) {
		avail_of(g, index)->flags = wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
	} else if (wanted && g->dev.features & F_EVENT) {
		driver_event_of(g, index)->off_wrap = (uint16_t)(event | r->used_wrap << 15);
		driver_event_of(g, index)->flags = VRING_PACKED_EVENT_FLAG_DESC;
	} else {
		driver_event_of(g, index)->flags = wanted ? VRING_PACKED_EVENT_FLAG_ENABLE : VRING_PACKED_EVENT_FLAG_DISABLE;
	}
}

static void calls_as_wished(struct guest *g, const struct kind *k)
{
	uint16_t id, event;
	uint32_t round, len;

	(void)k;
	post_frame(g, FROM, 0, 60, 1);
	recv_all(g);   /* the first is told in any case where there is an event index */
	take_used(g, FROM, &id, &len, 1);
	calls(g, FROM);
	for (round = 0; round < 20; round++) {
		wish(g, FROM, true, g->ring[FROM].used);
		post_frame(g, FROM, 0, 60, 1);
		recv_all(g);
		assert_int_equal(calls(g, FROM), 1);
		assert_true(take_used(g, FROM, &id, &len, 1));
		wish(g, FROM, false, 0);
		post_frame(g, FROM, 0, 60, 1);
		recv_all(g);
		assert_int_equal(calls(g, FROM), 0);
		assert_true(take_used(g, FROM, &id, &len, 1));
	}
	if (!(g->dev.features & F_EVENT))
		return;
	/* only when the third from here is used */
	event = (uint16_t)(g->ring[FROM].used + 2);
	if (g->ring[FROM].packed && event >= g->ring[FROM].size)
		return;   /* the other lap: said by calls_as_wished's rounds, which pass every slot */
	wish(g, FROM, true, event);
	for (round = 0; round < 3; round++) {
		post_frame(g, FROM, 0, 60, 1);
		recv_all(g);
		assert_int_equal(calls(g, FROM), round == 2);
		take_used(g, FROM, &id, &len, 1);
	}
}

static void test_calls_as_wished(void **state)
{
	(void)state;
	for_kinds(calls_as_wished);
}

static bool kick_wanted(struct guest *g, uint32_t index)
{
	struct guest_ring *r = &g->ring[index];
	uint16_t event;

	if (r->packed)
		return device_event_of(g, index)->flags == VRING_PACKED_EVENT_FLAG_ENABLE;
	memcpy(&event, &used_of(g, index)->ring[r->size], sizeof(event));
	if (g->dev.features & F_EVENT)   /* would the next buffer be told? */
		return event == r->next;
	return !(used_of(g, index)->flags & VRING_USED_F_NO_NOTIFY);
}

static void kicks_only_when_asleep(struct guest *g, const struct kind *k)
{
	uint32_t round;
	uint16_t id;
	uint32_t len;

	(void)k;
	for (round = 0; round < 20; round++) {
		assert_false(sl_vhost_arm(&g->dev));
		assert_true(kick_wanted(g, FROM));
		post_frame(g, FROM, 0, 60, 1);
		assert_true(sl_vhost_arm(&g->dev));   /* it came in between: no sleep */
		sl_vq_disarm(&g->dev.ring[FROM].vq);
		recv_all(g);
		assert_false(kick_wanted(g, FROM));
		take_used(g, FROM, &id, &len, 1);
	}
	if (g->ring[TO].packed || !(g->dev.features & F_EVENT))
		assert_false(kick_wanted(g, TO));
}

static void test_kicks_only_when_asleep(void **state)
{
	(void)state;
	for_kinds(kicks_only_when_asleep);
}

/* ---- life of a ring ---------------------------------------------------------------------------------------------- */

/* GET_VRING_BASE says where to go on; a ring that is started there loses and repeats nothing. */
static void stop_and_go_on(struct guest *g, const struct kind *k)
{
	struct sl_vu_state s = { FROM, 0 };
	struct sl_vu_msg answer;
	uint32_t round, len;
	uint16_t id;

	for (round = 0; round < 20; round++) {
		struct guest_ring was;

		post_frame(g, FROM, 0, 60, (uint8_t)round);
		post_frame(g, FROM, 1, 60, (uint8_t)(round + 1));
		assert_int_equal(recv_all(g), 2);
		post_frame(g, FROM, 2, 60, (uint8_t)(round + 2));
		assert_int_equal(say(g, SL_VU_GET_VRING_BASE, &s, sizeof(s), NULL, 0, &answer), 1);
		assert_int_equal(answer.hdr.size, sizeof(s));
		assert_int_equal(recv_all(g), 0);
		was = g->ring[FROM];
		guest_ring_start(g, FROM, k->size, k->features & F_PACKED, (uint16_t)answer.body.state.num);
		g->ring[FROM] = was;
		assert_int_equal(recv_all(g), 1);
		assert_filled(bufs[0].data, 60, (uint8_t)(round + 2));
		while (take_used(g, FROM, &id, &len, 1))
			;
	}
}

static void test_stop_and_go_on(void **state)
{
	(void)state;
	for_kinds(stop_and_go_on);
}

/* QEMU empties the ring of a back-end that has died from a place that it guesses: buffers come back to the guest that were not
 * next, and are not seen again. Those around them are taken. */
static void others_give_back(struct guest *g, const struct kind *k)
{
	uint32_t round, len;
	uint16_t id;

	if (!(k->features & F_PACKED))
		return;
	for (round = 0; round < 20; round++) {
		struct guest_ring *r = &g->ring[FROM];
		struct vring_packed_desc *d;

		post_frame(g, FROM, 0, 60, (uint8_t)round);
		d = &slots_of(g, FROM)[r->next];
		post_frame(g, FROM, 1, 60, (uint8_t)(round + 1));
		post_frame(g, FROM, 2, 60, (uint8_t)(round + 2));
		/* available and used are equal in what is used */
		d->flags = (uint16_t)(d->flags & 1 << VRING_PACKED_DESC_F_AVAIL ? d->flags | 1 << VRING_PACKED_DESC_F_USED
										: d->flags & ~(1 << VRING_PACKED_DESC_F_USED));
		assert_int_equal(recv_all(g), 1);
		assert_filled(bufs[0].data, 60, (uint8_t)round);
		assert_true(sl_vhost_arm(&g->dev));
		assert_int_equal(recv_all(g), 1);
		assert_filled(bufs[0].data, 60, (uint8_t)(round + 2));
		assert_false(sl_vhost_arm(&g->dev));
		for (int n = 0; n < 3; n++)
			assert_true(take_used(g, FROM, &id, &len, 1));
		assert_false(take_used(g, FROM, &id, &len, 1));
	}
}

static void test_others_give_back(void **state)
{
	(void)state;
	for_kinds(others_give_back);
}

/* The back-end before was killed: the front-end could not ask it for the base, and says 0. */
static void test_base_lost(void **state)
{
	static struct guest g;
	uint32_t i;

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	for (i = 0; i < 3; i++)
		post_frame(&g, FROM, i, 60, (uint8_t)i);
	assert_int_equal(recv_all(&g), 3);
	post_frame(&g, FROM, 3, 60, 3);
	sl_vhost_reset(&g.dev);
	guest_setup(&g, F_PLAIN);
	guest_ring_start(&g, FROM, 8, false, 0);
	assert_int_equal(recv_all(&g), 1);
	assert_filled(bufs[0].data, 60, 3);
	guest_close(&g);
}

/* The same memory said again while rings run, as for a hot-plugged device: they go on. */
static void memory_moves(struct guest *g, const struct kind *k)
{
	struct sl_vu_table t = {
		.nb = 2, .region = {{ GUEST_GPA, GUEST_LEN / 2, GUEST_UVA, 0 },
				    { GUEST_GPA + GUEST_LEN / 2, GUEST_LEN / 2, GUEST_UVA + GUEST_LEN / 2, GUEST_LEN / 2 }},
	};
	struct sl_vu_table gone = { .nb = 1, .region = {{ GUEST_GPA, 4096, GUEST_UVA, 0 }} };
	int fds[2] = { g->fd, g->fd };

	(void)k;
	post_frame(g, FROM, 0, 60, 1);
	assert_int_equal(recv_all(g), 1);
	assert_int_equal(say(g, SL_VU_SET_MEM_TABLE, &t, 8 + 64, fds, 2, NULL), 0);
	post_frame(g, FROM, 0, 60, 2);
	assert_int_equal(recv_all(g), 1);
	/* a ring would lose its memory: refused, the old memory stays */
	assert_int_equal(say(g, SL_VU_SET_MEM_TABLE, &gone, 8 + 32, fds, 1, NULL), -EPROTO);
	post_frame(g, FROM, 0, 60, 3);
	assert_int_equal(recv_all(g), 1);
	assert_filled(bufs[0].data, 60, 3);
}

static void test_memory_moves(void **state)
{
	(void)state;
	for_kinds(memory_moves);
}

static void test_disabled(void **state)
{
	static struct guest g;
	uint8_t frame[60] = { 0 };

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_ENABLE, FROM, 0), 0);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_ENABLE, TO, 0), 0);
	post_frame(&g, FROM, 0, 60, 1);
	post_free(&g, TO, 1, 2048);
	assert_int_equal(recv_all(&g), 0);
	assert_int_equal(g.dev.count[SL_VHOST_FROM_DROP_DISABLED], 1);
	assert_int_equal(send_one(&g, frame, 60), -ENETDOWN);
	guest_close(&g);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_calls_as_wished), cmocka_unit_test(test_kicks_only_when_asleep),
		cmocka_unit_test(test_stop_and_go_on), cmocka_unit_test(test_others_give_back), cmocka_unit_test(test_base_lost),
		cmocka_unit_test(test_memory_moves), cmocka_unit_test(test_disabled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
