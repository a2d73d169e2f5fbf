/* SPDX-License-Identifier: Apache-2.0 */
/* Steering under random frames and verdicts: nothing is read that is not there (sanitizers), nothing is lost without a
 * name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "router/steer.h"

enum { ROUNDS = 100000 };

static const uint8_t nic_mac[6] = { 2, 0, 0, 0, 0, 1 }, peer_mac[6] = { 2, 0, 0, 0, 0, 2 };
static const uint8_t vip4[4] = { 10, 77, 0, 10 }, peer4[4] = { 10, 77, 0, 2 };
static const uint8_t vip6[16] = { 0xfd, 0x77, [15] = 0x10 }, peer6[16] = { 0xfd, 0x77, [15] = 2 };

/* A router whose one NIC queue and instance 1 are null ports. */
static struct sl_router *router_make(void)
{
	static const uint64_t seed[2] = { 1, 2 };
	struct sl_addr v4 = sl_addr_from4(vip4), v6 = sl_addr_from6(vip6);
	struct sl_route net4 = { .prefix = sl_addr_from4((const uint8_t[4]){ 10, 77 }), .prefix_len = 96 + 24 };
	struct sl_route net6 = { .prefix = sl_addr_from6((const uint8_t[16]){ 0xfd, 0x77 }), .prefix_len = 64 };
	struct sl_router *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	assert_int_equal(sl_port_null_open(&r->nic[0]), 0);
	assert_int_equal(sl_port_null_open(&r->vm[1]), 0);
	r->vm[1]->vm_id = 1;
	r->nb_nic = 1;
	r->mtu = 1500;
	r->vips[1] = 3;
	assert_int_equal(sl_net_vip_set(&r->net, 0, &v4) | sl_net_vip_set(&r->net, 1, &v6), 0);
	assert_int_equal(sl_net_route_set(&r->net, &net4) | sl_net_route_set(&r->net, &net6), 0);
	sl_neighs_init(&r->neighs, &r->net, r->nic[0], &r->count, nic_mac, seed);
	return r;
}

static uint64_t sum(const struct sl_router *r, enum sl_rtr_counter first, enum sl_rtr_counter last)
{
	uint64_t n = 0;
	uint32_t i;

	for (i = first; i <= (uint32_t)last; i++)
		n += r->count.total[i];
	return n;
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)rand() % n;
}

/* A good frame of kind 0 or 1: from the NIC ARP or ND, from the instance IPv4 or IPv6. Returns its length. */
static uint32_t frame_make(uint8_t *frame, bool from_nic, uint32_t kind)
{
	static const uint8_t udp4[34] = {
		2, [12] = 8, 0, 0x45, [17] = 20, [22] = 64, 17, [26] = 10, 77, 0, 10, 10, 77, 0, 2,
	};
	static const struct sl_tags no_tags;
	struct sl_addr vip = kind ? sl_addr_from6(vip6) : sl_addr_from4(vip4);
	struct sl_addr peer = kind ? sl_addr_from6(peer6) : sl_addr_from4(peer4);
	uint32_t len;

	if (from_nic)
		return sl_wire_build_request(frame, peer_mac, &no_tags, &peer, &vip, NULL);
	if (!kind) {
		memcpy(frame, udp4, sizeof(udp4));
		return sizeof(udp4);
	}
	len = sl_wire_build_request(frame, nic_mac, &no_tags, &vip, &peer, peer_mac);
	frame[14 + 7] = 64;   /* no neighbour discovery any more */
	return len;
}

/* Spoils a few bytes of a frame and of its verdict, cuts it off, and sends it through. */
static void round_play(struct sl_router *r, uint32_t round, uint64_t now_ns)
{
	bool from_nic = round & 1;
	uint32_t kind = below(2), i;
	struct sl_meta meta = {
		.magic = SL_META_MAGIC, .vm_id = 1, .l3_off = 14, .kind = (uint8_t)(SL_META_ARP + kind),
	};
	uint8_t frame[SL_WIRE_MAX] = { 0 };
	uint32_t len = frame_make(frame, from_nic, kind);

	for (i = below(4); i; i--)
		frame[below(len)] = (uint8_t)rand();
	if (!below(4))
		meta.kind = SL_META_FLOW;
	if (!below(8))   /* anything behind the magic: a port checks that */
		((uint8_t *)&meta)[4 + below(sizeof(meta) - 4)] = (uint8_t)rand();
	if (!below(64))
		meta = (struct sl_meta){ 0 };
	if (!below(4))
		len = below(len + 1);
	assert_int_equal(sl_port_null_put(from_nic ? r->nic[0] : r->vm[1], frame, len, &meta), 0);
	if (from_nic)
		assert_int_equal(sl_steer_in(r, r->nic[0], now_ns), 1);
	else
		assert_int_equal(sl_steer_out(r, r->vm[1], now_ns), 1);
}

static void sent_forget(struct sl_port *port)
{
	sl_container_of(port, struct sl_port_null, port)->nb_tx = 0;
}

static void test_every_frame_is_counted_once(void **state)
{
	struct sl_router *r = router_make();
	uint64_t now_ns = 1;
	uint32_t i, waiting = 0;

	(void)state;
	srand(1);
	for (i = 0; i < ROUNDS; i++) {
		sent_forget(r->nic[0]);
		sent_forget(r->vm[1]);
		round_play(r, i, now_ns += 10000000);
		if (r->neighs.tick_ns && r->neighs.tick_ns <= now_ns)
			sl_neighs_tick(&r->neighs, now_ns);
	}
	for (i = 0; i < SL_NEIGH_CAP; i++)
		waiting += r->neighs.neigh[i].nb_wait;
	assert_int_equal(r->count.total[SL_RTR_IN], ROUNDS / 2);
	assert_int_equal(sum(r, SL_RTR_IN_FLOW, SL_RTR_DROP_UNWANTED), ROUNDS / 2);
	assert_int_equal(r->count.total[SL_RTR_OUT], ROUNDS / 2);
	assert_int_equal(sum(r, SL_RTR_OUT_SENT, SL_RTR_DROP_NIC_FULL) + waiting, ROUNDS / 2);
	/* the game was not too hard and not too easy */
	for (i = SL_RTR_IN_FLOW; i <= SL_RTR_IN_ND; i++)
		assert_true(r->count.total[i] > 1000);
	assert_true(r->count.total[SL_RTR_DROP_NO_META] > 100 && r->count.total[SL_RTR_DROP_BAD_META] > 100);
	assert_true(r->count.total[SL_RTR_DROP_BAD_ARP] > 100 && r->count.total[SL_RTR_DROP_BAD_ND] > 100);
	for (i = SL_RTR_OUT_SENT; i <= SL_RTR_DROP_NO_ROUTE; i++)
		assert_true(i == SL_RTR_DROP_TOO_BIG || r->count.total[i] > 0);
	sl_port_close(r->nic[0]);
	sl_port_close(r->vm[1]);
	free(r);
}

static void test_vlan_tags_are_taken_out(void **state)
{
	static const uint8_t tagged[] = {
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xa8, 0, 8, 0x81, 0, 0, 9, 8, 0, 'i', 'p',
	};
	static const uint8_t plain[] = { 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 'i', 'p' };
	struct sl_meta meta = { .magic = SL_META_MAGIC, .vm_id = 1, .l3_off = 22, .kind = SL_META_FLOW };
	struct sl_router *r = router_make();
	struct sl_port_null *vm = sl_container_of(r->vm[1], struct sl_port_null, port);

	(void)state;
	assert_int_equal(sl_port_null_put(r->nic[0], tagged, sizeof(tagged), &meta), 0);
	assert_int_equal(sl_steer_in(r, r->nic[0], 1), 1);
	assert_int_equal(vm->nb_tx, 1);
	assert_int_equal(vm->tx_len[0], sizeof(plain));
	assert_memory_equal(vm->tx[0], plain, sizeof(plain));
	sl_port_close(r->nic[0]);
	sl_port_close(r->vm[1]);
	free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_frame_is_counted_once),
		cmocka_unit_test(test_vlan_tags_are_taken_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
