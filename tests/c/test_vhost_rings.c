/* SPDX-License-Identifier: Apache-2.0 */
/* Frames through both kinds of rings with an honest driver: order, wrap-around, chains, mergeable buffers, guest to guest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test_vhost_kinds.h"

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
		cmocka_unit_test(test_from_many), cmocka_unit_test(test_from_chains),
		cmocka_unit_test(test_from_bad_frames), cmocka_unit_test(test_to_many),
		cmocka_unit_test(test_to_merged), cmocka_unit_test(test_to_crumbs), cmocka_unit_test(test_pass),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
