/* SPDX-License-Identifier: Apache-2.0 */
/* Frames through both kinds of rings with an honest driver: order, wrap-around, chains, mergeable buffers, interrupts and
 * kicks, guest to guest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test_vhost_rig.h"

enum { TO = 0, FROM = 1 };

struct kind {
	uint64_t features;
	uint16_t size, base;
};

/* each test runs for all of these; the bases make positions wrap early */
static const struct kind kinds[] = {
	{ F_PLAIN, 8, 0 },
	{ F_PLAIN | F_EVENT | F_MRG, 8, 0xfffd },
	{ F_PLAIN | F_PACKED, 8, 0x8000 },
	{ F_PLAIN | F_PACKED | F_EVENT | F_MRG, 7, 0x8005 },   /* packed sizes need be no power of two */
	{ F_PLAIN | F_PACKED, 8, 3 },                          /* in an odd lap */
};

static uint8_t memory[32][GUEST_FRAME_MAX];
static struct sl_vq_buf bufs[32];

static uint32_t recv_all(struct guest *g)
{
	uint32_t i, turn = 0;
	bool more;

	for (i = 0; i < 32; i++)
		bufs[i].data = memory[i];
	return sl_vhost_recv(&g->dev, bufs, 32, &turn, &more);
}

static int send_one(struct guest *g, const void *frame, uint32_t len)
{
	struct iovec seg = { (void *)(uintptr_t)frame, len };
	int err = sl_vhost_send(&g->dev, 0, &seg, 1, len);

	sl_vhost_flush(&g->dev);
	return err;
}

static void assert_filled(const uint8_t *p, uint32_t len, uint8_t fill)
{
	uint32_t i;

	for (i = 0; i < len; i++)
		assert_int_equal(p[i], fill);
}

static void for_kinds(void (*run)(struct guest *, const struct kind *))
{
	static struct guest g;
	size_t i;

	for (i = 0; i < sl_nb(kinds); i++) {
		guest_start(&g, kinds[i].features, kinds[i].size, kinds[i].base);
		run(&g, &kinds[i]);
		guest_close(&g);
	}
}

/* ---- from the guest ---------------------------------------------------------------------------------------------- */

static void from_many(struct guest *g, const struct kind *k)
{
	uint32_t round, i, len, n = 0;
	uint16_t id;

	for (round = 0; round < 50; round++) {
		uint32_t burst = 1 + round % k->size;

		for (i = 0; i < burst; i++)
			post_frame(g, FROM, i, 60 + i, (uint8_t)(n + i));
		assert_int_equal(recv_all(g), burst);
		for (i = 0; i < burst; i++, n++) {
			assert_int_equal(bufs[i].len, 60 + i);
			assert_filled(bufs[i].data, 60 + i, (uint8_t)n);
			assert_true(take_used(g, FROM, &id, &len, 1));
			assert_int_equal(len, 0);
		}
		assert_false(take_used(g, FROM, &id, &len, 1));
	}
	assert_int_equal(g->dev.count[SL_VHOST_FROM_FRAMES], n);
}

static void test_from_many(void **state)
{
	(void)state;
	for_kinds(from_many);
}

/* The header alone, in parts, or with data: all layouts are legal. */
static void from_chains(struct guest *g, const struct kind *k)
{
	static const uint32_t cuts[][4] = {{ 12, 100 }, { 5, 7, 100 }, { 20, 92 }, { 1, 1, 1, 109 }, { 112 }};
	uint16_t id, head;
	uint32_t i, c, len;

	(void)k;
	for (c = 0; c < sl_nb(cuts); c++) {
		struct part parts[4];
		uint64_t off = 0;

		memset(guest_buf(g, 0), 0, 12);
		for (i = 0; i < 100; i++)
			guest_buf(g, 0)[12 + i] = (uint8_t)(i + c);
		for (i = 0; i < 4 && cuts[c][i]; i++) {
			parts[i] = (struct part){ buf_gpa(0) + off, cuts[c][i], 0 };
			off += cuts[c][i];
		}
		head = post(g, FROM, parts, i);
		assert_int_equal(recv_all(g), 1);
		assert_int_equal(bufs[0].len, 100);
		assert_memory_equal(bufs[0].data, guest_buf(g, 0) + 12, 100);
		assert_true(take_used(g, FROM, &id, &len, (uint16_t)i));
		assert_int_equal(id, head);
	}
}

static void test_from_chains(void **state)
{
	(void)state;
	for_kinds(from_chains);
}

static void from_bad_frames(struct guest *g, const struct kind *k)
{
	struct virtio_net_hdr *h = (void *)guest_buf(g, 0);

	(void)k;
	post_frame(g, FROM, 0, 13, 1);
	assert_int_equal(recv_all(g), 0);
	assert_int_equal(g->dev.count[SL_VHOST_FROM_DROP_RUNT], 1);
	post(g, FROM, &(struct part){ buf_gpa(0), GUEST_FRAME_MAX + 13, 0 }, 1);
	assert_int_equal(recv_all(g), 0);
	assert_int_equal(g->dev.count[SL_VHOST_FROM_DROP_OVERSIZE], 1);
	post_frame(g, FROM, 0, 60, 1);
	h->gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
	assert_int_equal(recv_all(g), 0);
	post_frame(g, FROM, 0, 60, 1);
	h->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	assert_int_equal(recv_all(g), 0);
	assert_int_equal(g->dev.count[SL_VHOST_FROM_DROP_OFFLOAD], 2);
	post_frame(g, FROM, 0, 14, 1);
	assert_int_equal(recv_all(g), 1);
}

static void test_from_bad_frames(void **state)
{
	(void)state;
	for_kinds(from_bad_frames);
}

/* ---- to the guest ------------------------------------------------------------------------------------------------ */

static void to_many(struct guest *g, const struct kind *k)
{
	uint8_t frame[1514];
	uint32_t round, i, len;
	uint16_t id;

	for (round = 0; round < 50; round++) {
		uint32_t burst = 1 + round % k->size;

		for (i = 0; i < burst; i++)
			post_free(g, TO, i, GUEST_BUF_LEN);
		for (i = 0; i < burst; i++) {
			memset(frame, (int)(round + i), sizeof(frame));
			assert_int_equal(send_one(g, frame, 64 + i), 0);
		}
		assert_int_equal(send_one(g, frame, 64), -EAGAIN);
		for (i = 0; i < burst; i++) {
			const struct virtio_net_hdr_mrg_rxbuf *h = (void *)guest_buf(g, i);

			assert_true(take_used(g, TO, &id, &len, 1));
			assert_int_equal(len, 64 + i + SL_VQ_HDR_LEN);
			assert_int_equal(h->num_buffers, 1);
			assert_int_equal(h->hdr.flags | h->hdr.gso_type, 0);
			assert_filled(guest_buf(g, i) + SL_VQ_HDR_LEN, 64 + i, (uint8_t)(round + i));
		}
		assert_false(take_used(g, TO, &id, &len, 1));
	}
	assert_int_equal(g->dev.count[SL_VHOST_TO_DROP_FULL], 50);
}

static void test_to_many(void **state)
{
	(void)state;
	for_kinds(to_many);
}

/* A frame over several buffers where that was negotiated; without, it is dropped and the buffer stays. */
static void to_merged(struct guest *g, const struct kind *k)
{
	bool mergeable = k->features & F_MRG;
	uint8_t frame[400];
	uint32_t i, len, round;
	uint16_t id;

	for (i = 0; i < sizeof(frame); i++)
		frame[i] = (uint8_t)i;
	for (round = 0; round < 20; round++) {
		if (!mergeable && round)
			break;
		for (i = 0; i < 5; i++)
			post_free(g, TO, i, 100);
		assert_int_equal(send_one(g, frame, 400), mergeable ? 0 : -EMSGSIZE);
		if (!mergeable)
			continue;
		for (i = 0; i < 5; i++) {
			assert_true(take_used(g, TO, &id, &len, 1));
			assert_int_equal(len, i < 4 ? 100 : 12);
			assert_memory_equal(guest_buf(g, i) + (i ? 0 : 12), frame + (i ? i * 100 - 12 : 0), i ? len : 88);
		}
		assert_int_equal(((struct virtio_net_hdr_mrg_rxbuf *)(void *)guest_buf(g, 0))->num_buffers, 5);
	}
	if (mergeable) {
		/* three buffers are not enough: none is taken, and they serve the next frame */
		for (i = 0; i < 3; i++)
			post_free(g, TO, i, 100);
		assert_int_equal(send_one(g, frame, 400), -EAGAIN);
		assert_false(take_used(g, TO, &id, &len, 1));
	}
	assert_int_equal(send_one(g, frame, 60), 0);
	assert_true(take_used(g, TO, &id, &len, 1));
	assert_int_equal(len, 72);
}

static void test_to_merged(void **state)
{
	(void)state;
	for_kinds(to_merged);
}

/* More buffers than any frame may fill: dropped, the guest only harms itself. */
static void test_to_crumbs(void **state)
{
	static struct guest g;
	uint8_t frame[200] = { 0 };
	uint32_t i;

	(void)state;
	guest_start(&g, F_PLAIN | F_MRG, 256, 0);
	for (i = 0; i < 256; i++)
		post_free(&g, TO, i, 1);
	assert_int_equal(send_one(&g, frame, 200), -EMSGSIZE);
	assert_int_equal(g.dev.count[SL_VHOST_TO_DROP_NO_ROOM], 1);
	assert_int_equal(g.dev.ring[TO].vq.state, SL_VQ_STARTED);
	assert_int_equal(send_one(&g, frame, 20), 0);   /* 32 crumbs */
	guest_close(&g);
}

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

/* ---- guest to guest ---------------------------------------------------------------------------------------------- */

static void test_pass(void **state)
{
	static struct guest a, b;
	size_t i, j;

	(void)state;
	for (i = 0; i < sl_nb(kinds); i++)
		for (j = 0; j < sl_nb(kinds); j++) {
			uint32_t n, k, len, round;
			uint16_t id;
			bool more;

			guest_start(&a, kinds[i].features, kinds[i].size, kinds[i].base);
			guest_start(&b, kinds[j].features, kinds[j].size, kinds[j].base);
			for (round = 0; round < 10; round++) {
				for (k = 0; k < 5; k++) {
					post_frame(&a, FROM, k, 60 + 300 * k, (uint8_t)(round + k));
					post_free(&b, TO, k, 2048);
				}
				n = sl_vq_pass(&a.dev.ring[FROM].vq, &b.dev.ring[TO].vq, 32, &more);
				assert_int_equal(n, 5);
				assert_false(more);
				for (k = 0; k < 5; k++) {
					assert_true(take_used(&a, FROM, &id, &len, 1));
					assert_true(take_used(&b, TO, &id, &len, 1));
					assert_int_equal(len, 60 + 300 * k + 12);
					assert_filled(guest_buf(&b, k) + 12, 60 + 300 * k, (uint8_t)(round + k));
				}
			}
			guest_close(&a);
			guest_close(&b);
		}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_from_many), cmocka_unit_test(test_from_chains), cmocka_unit_test(test_from_bad_frames),
		cmocka_unit_test(test_to_many), cmocka_unit_test(test_to_merged), cmocka_unit_test(test_to_crumbs),
		cmocka_unit_test(test_calls_as_wished), cmocka_unit_test(test_kicks_only_when_asleep),
		cmocka_unit_test(test_stop_and_go_on), cmocka_unit_test(test_base_lost), cmocka_unit_test(test_memory_moves), cmocka_unit_test(test_disabled),
		cmocka_unit_test(test_pass),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
