/* SPDX-License-Identifier: Apache-2.0 */
/* The neighbour table without a network: its frames go to a null port, its time is a parameter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "router/neigh.h"
#include "router/steer.h"

#define SECOND 1000000000ull

static const uint8_t nic_mac[6] = { 2, 0, 0, 0, 0, 1 }, peer_mac[6] = { 2, 0, 0, 0, 0, 2 };
static const uint8_t other_mac[6] = { 2, 0, 0, 0, 0, 3 };

struct bench {
	struct sl_router r;             /* its one NIC queue and instance 1 are null ports */
	struct sl_port_null *nic, *vm;
	uint64_t now;
};

static struct sl_addr ip4(uint8_t c, uint8_t d)
{
	return sl_addr_from4((const uint8_t[4]){ 10, 77, c, d });
}

static struct sl_addr ip6(uint8_t last)
{
	return sl_addr_from6((const uint8_t[16]){ 0xfd, 0x77, [15] = last });
}

static int setup(void **state)
{
	static const uint64_t seed[2] = { 0x0123456789abcdefull, 0xfedcba9876543210ull };
	struct bench *b = calloc(1, sizeof(*b));
	struct sl_addr v4 = ip4(0, 10), v6 = ip6(0x10);
	struct sl_route routes[] = {
		{ .prefix = sl_addr_from4((const uint8_t[4]){ 10, 77 }), .prefix_len = 96 + 16 },
		{ .prefix = sl_addr_from6((const uint8_t[16]){ 0xfd, 0x77 }), .prefix_len = 64 },
		{ .prefix = sl_addr_from4((const uint8_t[4]){ 0 }), .prefix_len = 96, .gateway = ip4(0, 2) },
	};
	struct sl_router *r = &b->r;
	size_t i;

	assert_int_equal(sl_port_null_open(&r->nic[0]), 0);
	assert_int_equal(sl_port_null_open(&r->vm[1]), 0);
	b->nic = sl_container_of(r->nic[0], struct sl_port_null, port);
	b->vm = sl_container_of(r->vm[1], struct sl_port_null, port);
	r->vm[1]->vm_id = 1;
	r->nb_nic = 1;
	r->mtu = 1500;
	r->vips[1] = 3;
	memcpy(r->mac, nic_mac, 6);
	assert_int_equal(sl_net_vip_set(&r->net, 0, &v4), 0);
	assert_int_equal(sl_net_vip_set(&r->net, 1, &v6), 0);
	for (i = 0; i < sl_nb(routes); i++)
		assert_int_equal(sl_net_route_set(&r->net, &routes[i]), 0);
	sl_neighs_init(&r->neighs, &r->net, r->nic[0], &r->count, nic_mac, seed);
	b->now = 1000 * SECOND;
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	sl_port_close(b->r.nic[0]);
	sl_port_close(b->r.vm[1]);
	free(b);
	return 0;
}

static uint64_t total(const struct bench *b, enum sl_rtr_counter which)
{
	return b->r.count.total[which];
}

/* An IPv4 frame of the instance, to dst. */
static void vm_send(struct bench *b, struct sl_addr dst)
{
	uint8_t frame[60] = { [12] = 8, 0, 0x45, [17] = 46, [26] = 10, 77, 0, 10 };

	memcpy(frame + 30, dst.b + 12, 4);
	assert_int_equal(sl_port_null_put(b->r.vm[1], frame, sizeof(frame), NULL), 0);
	assert_int_equal(sl_steer_out(&b->r, b->r.vm[1], b->now), 1);
}

/* The neighbour with address a (of the family of a VIP) asks for that VIP, or answers it. */
static struct sl_wire_msg from_peer(struct sl_addr a, bool is_reply)
{
	struct sl_wire_msg m = {
		.is_reply = is_reply, .has_mac = true, .solicited = is_reply, .is_override = is_reply, .about = a,
		.target = sl_addr_is4(&a) ? ip4(0, 10) : ip6(0x10),
	};

	memcpy(m.mac, peer_mac, 6);
	memcpy(m.eth_src, peer_mac, 6);
	return m;
}

static void peer_asks(struct bench *b, struct sl_addr a)
{
	struct sl_wire_msg m = from_peer(a, false);

	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), 0);
}

static void peer_answers(struct bench *b, struct sl_addr a)
{
	struct sl_wire_msg m = from_peer(a, true);

	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), 0);
}

static void sent_forget(struct bench *b)
{
	b->nic->nb_tx = 0;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void test_frames_wait_for_the_answer_in_order(void **state)
{
	struct bench *b = *state;
	uint32_t i;

	for (i = 0; i < 5; i++)
		vm_send(b, ip4(0, 2));
	assert_int_equal(b->nic->nb_tx, 1);                                   /* one question, no frame */
	assert_int_equal(sl_be16(b->nic->tx[0] + 12), 0x0806);
	assert_int_equal(total(b, SL_RTR_DROP_NEIGH_BUSY), 1);                /* SL_NEIGH_WAIT_EACH is 4 */
	sent_forget(b);
	peer_answers(b, ip4(0, 2));
	assert_int_equal(b->nic->nb_tx, 4);
	for (i = 0; i < 4; i++) {
		assert_int_equal(b->nic->tx_len[i], 60);
		assert_memory_equal(b->nic->tx[i], peer_mac, 6);
		assert_memory_equal(b->nic->tx[i] + 6, nic_mac, 6);
	}
	assert_int_equal(total(b, SL_RTR_OUT_SENT), 4);
	assert_int_equal(b->r.count.port[1].out_packets, 4);
}

static void test_who_asks_is_known_and_answered(void **state)
{
	struct bench *b = *state;

	peer_asks(b, ip4(0, 9));
	assert_int_equal(total(b, SL_RTR_ANSWERED), 1);
	sent_forget(b);
	vm_send(b, ip4(0, 9));
	assert_int_equal(b->nic->nb_tx, 1);
	assert_int_equal(sl_be16(b->nic->tx[0] + 12), 0x0800);
	assert_int_equal(total(b, SL_RTR_ASKED), 0);
}

static void test_far_destination_goes_to_the_gateway(void **state)
{
	struct bench *b = *state;

	peer_asks(b, ip4(0, 2));
	sent_forget(b);
	vm_send(b, sl_addr_from4((const uint8_t[4]){ 192, 0, 2, 1 }));
	assert_int_equal(b->nic->nb_tx, 1);
	assert_memory_equal(b->nic->tx[0], peer_mac, 6);
}

static void test_silence_is_given_up_after_three_questions(void **state)
{
	struct bench *b = *state;
	uint32_t i;

	vm_send(b, ip4(0, 2));
	for (i = 0; i < 3; i++) {
		assert_int_equal(b->r.neighs.tick_ns, b->now + SECOND);
		assert_int_equal(total(b, SL_RTR_ASKED), i + 1);
		b->now += SECOND;
		sl_neighs_tick(&b->r.neighs, b->now);
	}
	assert_int_equal(total(b, SL_RTR_ASKED), 3);
	assert_int_equal(total(b, SL_RTR_DROP_UNRESOLVED), 1);
	assert_int_equal(total(b, SL_RTR_NEIGH_LOST), 1);
	assert_int_equal(b->r.neighs.nb_used, 0);
	assert_int_equal(b->r.neighs.tick_ns, 0);                             /* idle costs nothing */
}

static void test_old_entry_is_asked_directly_and_used_meanwhile(void **state)
{
	struct bench *b = *state;

	peer_asks(b, ip4(0, 2));
	b->now += 31 * SECOND;
	sent_forget(b);
	vm_send(b, ip4(0, 2));
	assert_int_equal(b->nic->nb_tx, 2);
	assert_int_equal(sl_be16(b->nic->tx[0] + 12), 0x0806);
	assert_memory_equal(b->nic->tx[0], peer_mac, 6);                      /* unicast */
	assert_int_equal(sl_be16(b->nic->tx[1] + 12), 0x0800);
	peer_answers(b, ip4(0, 2));
	sent_forget(b);
	vm_send(b, ip4(0, 2));
	assert_int_equal(b->nic->nb_tx, 1);
}

static void test_unasked_answer_changes_nothing(void **state)
{
	struct bench *b = *state;
	struct sl_wire_msg m = from_peer(ip4(0, 2), true);

	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), -EPERM);
	assert_int_equal(b->r.neighs.nb_used, 0);
	peer_asks(b, ip4(0, 2));
	memcpy(m.mac, other_mac, 6);
	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), -EPERM);
	sent_forget(b);
	vm_send(b, ip4(0, 2));
	assert_memory_equal(b->nic->tx[0], peer_mac, 6);
}

static void test_only_neighbours_are_learnt(void **state)
{
	struct bench *b = *state;
	struct sl_wire_msg m = from_peer(ip4(0, 2), false);

	peer_asks(b, sl_addr_from4((const uint8_t[4]){ 10, 78, 0, 1 }));   /* off-link: answered, not learnt */
	peer_asks(b, sl_addr_from4((const uint8_t[4]){ 224, 0, 0, 1 }));
	m.about = ip4(0, 10);                                              /* claims our address */
	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), -EPERM);
	m.about = ip4(0, 2);
	m.target = ip4(0, 3);                                              /* asks for somebody else */
	assert_int_equal(sl_neighs_input(&b->r.neighs, &m, b->now), -EPERM);
	assert_int_equal(b->r.neighs.nb_used, 0);
	peer_asks(b, ip6(2));
	assert_int_equal(b->r.neighs.nb_used, 1);
}

static void test_flood_of_neighbours_spares_those_in_use(void **state)
{
	struct bench *b = *state;
	uint32_t i;

	peer_asks(b, ip4(0, 2));
	peer_asks(b, ip4(0, 9));
	vm_send(b, ip4(0, 9));
	for (i = 0; i < 20000; i++) {
		b->now++;
		sent_forget(b);
		peer_asks(b, ip4((uint8_t)(1 + i / 250), (uint8_t)(1 + i % 250)));
	}
	assert_true(b->r.neighs.nb_used <= SL_NEIGH_CAP);
	assert_true(total(b, SL_RTR_NEIGH_EVICTED) > 20000 - SL_NEIGH_CAP - 10);
	sent_forget(b);
	vm_send(b, ip4(0, 9));
	vm_send(b, ip4(0, 2));   /* never used, but a gateway */
	assert_int_equal(b->nic->nb_tx, 2);
	assert_int_equal(total(b, SL_RTR_ASKED), 0);
}

static void test_questions_and_waiting_frames_are_bounded(void **state)
{
	struct bench *b = *state;
	uint32_t i;

	for (i = 0; i < 1000; i++) {
		sent_forget(b);
		vm_send(b, ip4((uint8_t)(1 + i / 250), (uint8_t)(1 + i % 250)));
	}
	assert_int_equal(total(b, SL_RTR_ASKED), SL_NEIGH_ASKING_MAX);
	assert_int_equal(total(b, SL_RTR_DROP_NEIGH_BUSY), 1000 - SL_NEIGH_ASKING_MAX);
	b->now += 4 * SECOND;
	for (i = 0; i < 4; i++) {
		sent_forget(b);
		sl_neighs_tick(&b->r.neighs, b->now += SECOND);
	}
	assert_int_equal(b->r.neighs.nb_used, 0);
	assert_int_equal(total(b, SL_RTR_DROP_UNRESOLVED), SL_NEIGH_ASKING_MAX);
	for (i = 0; b->r.neighs.wait_free; i++)   /* every buffer came back */
		b->r.neighs.wait_free = b->r.neighs.wait_free->next;
	assert_int_equal(i, SL_NEIGH_WAIT_MAX);
}

static void test_unused_entries_age(void **state)
{
	struct bench *b = *state;

	peer_asks(b, ip4(0, 9));
	b->now += 599 * SECOND;
	sl_neighs_tick(&b->r.neighs, b->now);
	assert_int_equal(b->r.neighs.nb_used, 1);
	b->now += 2 * SECOND;
	sl_neighs_tick(&b->r.neighs, b->now);
	assert_int_equal(b->r.neighs.nb_used, 0);
}

static void test_full_nic_is_counted(void **state)
{
	struct bench *b = *state;

	peer_asks(b, ip4(0, 2));
	b->nic->tx_cap = b->nic->nb_tx;
	vm_send(b, ip4(0, 2));
	assert_int_equal(total(b, SL_RTR_DROP_NIC_FULL), 1);
	assert_int_equal(b->r.count.port[1].out_dropped, 1);
}

/* ---- the wire ---------------------------------------------------------------------------------------------------- */

/* What we ask is understood by our own parser, for each family, with and without tags, and cut off anywhere is
 * refused. */
static void test_request_and_reply_round_trip(void **state)
{
	static const struct sl_tags tags[] = {
		{ .len = 0 }, { { 0x81, 0, 0, 7 }, 4 }, { { 0x88, 0xa8, 0, 8, 0x81, 0, 0, 9 }, 8 },
	};
	struct sl_addr pairs[2][2] = { { ip4(0, 10), ip4(0, 2) }, { ip6(0x10), ip6(2) } };
	uint8_t buf[SL_WIRE_MAX];
	struct sl_wire_msg m;
	uint32_t p, t, len, cut;

	(void)state;
	for (p = 0; p < 2; p++)
		for (t = 0; t < sl_nb(tags); t++) {
			int (*parse)(const uint8_t *, uint32_t, uint32_t, struct sl_wire_msg *) =
				p ? sl_wire_parse_nd : sl_wire_parse_arp;
			uint32_t off = 14u + tags[t].len;

			len = sl_wire_build_request(buf, nic_mac, &tags[t], &pairs[p][0], &pairs[p][1], NULL);
			assert_int_equal(parse(buf, len, off, &m), 0);
			assert_false(m.is_reply);
			assert_memory_equal(&m.about, &pairs[p][0], 16);
			assert_memory_equal(&m.target, &pairs[p][1], 16);
			assert_memory_equal(m.mac, nic_mac, 6);
			assert_memory_equal(&m.tags, &tags[t], sizeof(m.tags));
			for (cut = 0; cut < len; cut++) {
				uint8_t *shorter = malloc(cut + 1);   /* a sanitizer sees a read behind it */

				assert_non_null(shorter);
				memcpy(shorter + 1, buf, cut);
				assert_int_equal(parse(shorter + 1, cut, off, &(struct sl_wire_msg){ 0 }), -EBADMSG);
				free(shorter);
			}
			len = sl_wire_build_reply(buf, peer_mac, &m);
			assert_int_equal(parse(buf, len, off, &m), 0);
			assert_true(m.is_reply && m.solicited && m.is_override);
			assert_memory_equal(&m.about, &pairs[p][1], 16);
			assert_memory_equal(m.mac, peer_mac, 6);
		}
}

static void test_duplicate_address_detection_is_told_to_all(void **state)
{
	struct bench *b = *state;
	struct sl_wire_msg m = { .target = ip6(0x10) };

	memcpy(m.eth_src, peer_mac, 6);
	sl_neighs_input(&b->r.neighs, &m, b->now);
	assert_int_equal(b->nic->nb_tx, 1);
	assert_memory_equal(b->nic->tx[0], "\x33\x33\0\0\0\1", 6);
	assert_int_equal(b->nic->tx[0][14 + 40], 136);
	assert_int_equal(b->nic->tx[0][14 + 44], 0x20);   /* override, not solicited */
	assert_int_equal(b->r.neighs.nb_used, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_frames_wait_for_the_answer_in_order),
		TEST(test_who_asks_is_known_and_answered),
		TEST(test_far_destination_goes_to_the_gateway),
		TEST(test_silence_is_given_up_after_three_questions),
		TEST(test_old_entry_is_asked_directly_and_used_meanwhile),
		TEST(test_unasked_answer_changes_nothing),
		TEST(test_only_neighbours_are_learnt),
		TEST(test_flood_of_neighbours_spares_those_in_use),
		TEST(test_questions_and_waiting_frames_are_bounded),
		TEST(test_unused_entries_age),
		TEST(test_full_nic_is_counted),
		TEST(test_request_and_reply_round_trip),
		TEST(test_duplicate_address_detection_is_told_to_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
