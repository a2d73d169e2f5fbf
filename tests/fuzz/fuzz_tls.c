/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile tcp offers a TLS 1.3 connection to a tls instance that never had it, and a hostile client goes on with it.
 *
 * libFuzzer writes the sealed state's content, spoils the seal, invents the marks of both ends, and says what comes then and
 * in which order: records with any content under the right keys, records that are spoiled or cut, bytes that are none, what
 * http sends, ends, hand-overs, deaths, time. Behind the layer stands the flow library's stand-in of the unit tests, which
 * shows bytes in allocations of their exact length and aborts at what is against its contract. At the end of each script
 * nothing of it may be left in the instance. */
#include <stdint.h>
#include <stdio.h>

#include "tls_rig.h"

#include "base/base.h"
#include "layers/tls/move.h"

enum { GEN_MAX = 7, CONTENT_MAX = 17000, OPS_MAX = 200, HTTP_VM = 9 };

/* In the script's first byte: what is wrong with the offer; windows are narrow; tcp's FIN comes before http has answered */
enum { SPOIL_SEAL = 1, SPOIL_LENGTH = 2, SPOIL_ID = 4, SPOIL_STATE = 8, SPOIL_MARKS = 16, NARROW = 32, EARLY_FIN = 64 };

static struct world world;
static struct sl_crypto crypto;   /* the client's, and whoever sealed the state */
static unsigned long long nb_states, nb_taken, nb_records;

static const uint8_t *at, *end;

static uint64_t next(unsigned nb)
{
	uint64_t v = 0;

	while (nb-- && at < end)
		v = v << 8 | *at++;
	return v;
}

static void totals_print(void)
{
	fprintf(stderr, "totals: %llu states, %llu takeovers, %llu records\n", nb_states, nb_taken, nb_records);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct pair certificate;
	struct sl_aead *aead;

	(void)argc, (void)argv;
	certificate = pair_make(EVP_EC_gen("P-256"), "default", NULL, NULL);
	world_conf(&world);
	memset(&world.pool, 0x77, sizeof(world.pool));
	if (world_start(&world, &certificate, 1) || sl_aead_open(NULL, &aead) || sl_crypto_init(&crypto, aead) ||
	    atexit(totals_print))
		abort();
	return 0;
}

/* --- the offer --- */

static uint64_t mark(bool any)
{
	uint64_t flags = next(1);

	if (!any)
		return flags & 0x80 ? 0 : sl_mark(flags & 3, flags >> 2 & 7);
	/* generations without end only take time: one HMAC each */
	return next(8) & ~((uint64_t)(0x1fff & ~GEN_MAX) << SL_MARK_GEN_SHIFT);
}

static struct sl_flow_marks marks(bool any)
{
	uint8_t fins = (uint8_t)next(1);

	return (struct sl_flow_marks){
		.got = mark(any), .kept = mark(any), .kept_len = (uint32_t)next(2), .got_fin = (fins & 15) == 1, .sent_fin = (fins >> 4) == 1,
	};
}

static struct sl_tls_state state(bool any)
{
	struct sl_tls_state st;

	memset(&st, 0, sizeof(st));
	st.request_id = 77;
	st.suite = (uint16_t)(0x1301 + next(1) % 3);
	st.http_vm = HTTP_VM;
	st.service = 3;
	memset(st.rx_secret, 1, sizeof(st.rx_secret));
	memset(st.tx_secret, 2, sizeof(st.tx_secret));
	if (any) {
		st.suite = (uint16_t)next(2);
		st.http_vm = (uint16_t)next(2);
		st.service = (uint16_t)next(2);
		st.rx_gen = (uint16_t)next(2);
		st.tx_gen = (uint16_t)next(2);
		st.tx_first = next(8);
	}
	return st;
}

static struct fake_flow *offer(uint8_t spoil, struct sl_tls_state *st, struct sl_flow_marks *tcp)
{
	uint8_t msg[sizeof(*tcp) + SL_SEALED_LEN];
	uint32_t len = sizeof(msg);

	*st = state(spoil & SPOIL_STATE);
	*tcp = marks(spoil & SPOIL_MARKS);
	memcpy(msg, tcp, sizeof(*tcp));
	if (!sl_state_seal(&crypto, &world.pool, st, msg + sizeof(*tcp)))
		abort();
	if (spoil & SPOIL_SEAL)
		msg[sizeof(*tcp) + next(1) % SL_SEALED_LEN] ^= (uint8_t)next(1);
	if (spoil & SPOIL_LENGTH)
		len = (uint32_t)next(1) % (len + 1);
	nb_states++;
	return fake_take_over(&world.k, st->request_id ^ (spoil & SPOIL_ID), msg, len);
}

/* --- what comes then --- */

/* The client's side of the connection, with the instance's idea of where it is */
static void client_set(struct sl_half *client, const struct sl_tls_state *st, uint64_t rx_safe)
{
	const struct sl_suite *suite = sl_suite_find(st->suite);
	uint16_t gen = sl_mark_gen(rx_safe);

	if (!suite || sl_half_set(client, &crypto, suite, st->rx_secret, st->rx_gen, true))
		return;
	while (client->gen < gen && !sl_half_update(client, &crypto))
		;
	client->seq = rx_safe & SL_MARK_SEQ;
}

static void bytes_send(struct fake_flow *ff, const uint8_t *p, uint32_t len)
{
	uint32_t cut = (uint32_t)next(2) % (len + 1);

	nb_records++;
	fake_send(ff, p, cut, 0);
	fake_send(ff, p + cut, len - cut, 0);
}

/* Any content of any type under the right keys; how: its bytes, padding, a record spoiled or shortened on its way. */
static void record_send(struct fake_flow *front, struct sl_half *client)
{
	static uint8_t content[CONTENT_MAX + 300], record[CONTENT_MAX + 300 + SL_RECORD_EXTRA];
	uint8_t how = (uint8_t)next(1), type = (uint8_t)next(1);
	uint32_t len = (uint32_t)next(how & 1 ? 2 : 1) % CONTENT_MAX, given = how & 2 ? 0 : sl_min(len, 8u), whole;
	uint16_t gen = client->gen;

	if (how & 4)
		type = (uint8_t)(SL_RECORD_CCS + type % 4);
	memset(content, 'x', len);
	for (uint32_t i = 0; i < given; i++)
		content[i] = (uint8_t)next(1);
	if (how & 64) {   /* a key update */
		static const uint8_t update[4] = {24, 0, 0, 1};

		memcpy(content, update, sizeof(update));
		content[4] = (uint8_t)(next(1) & 1);
		len = 5;
		type = SL_RECORD_HANDSHAKE;
	} else if (how & 8) {
		uint32_t pad = (uint32_t)next(1);

		content[len] = type;
		memset(content + len + 1, 0, pad);
		len += 1 + pad;
		type = 0;
	}
	if (!client->key || !sl_record_seal(client, type, content, len, record))
		return;
	whole = len + SL_RECORD_EXTRA;
	if (how & 16)
		record[next(2) % whole] ^= (uint8_t)next(1);
	if (how & 32)
		whole -= (uint32_t)next(1) % whole;
	bytes_send(front, record, whole);
	if (type == SL_RECORD_HANDSHAKE && len == 5 && content[0] == 24 && gen < GEN_MAX)
		sl_half_update(client, &crypto);
}

static void raw_send(struct fake_flow *ff)
{
	uint8_t raw[256];
	uint32_t len = (uint32_t)next(1);

	for (uint32_t i = 0; i < len; i++)
		raw[i] = (uint8_t)next(1);
	if (at < end && *at & 1 && len >= SL_RECORD_HEAD)   /* so that more than the first byte is looked at */
		raw[0] = SL_RECORD_DATA;
	bytes_send(ff, raw, len);
}

static void http_send(struct fake_flow *back)
{
	static uint8_t text[SL_RECORD_CONTENT + 64];
	uint32_t len = (uint32_t)next(2) % sizeof(text);

	fake_send(back, text, len, next(1) & 1 ? SL_F_FIN : 0);
}

static bool alive(const struct fake_flow *ff)
{
	return ff && !ff->ended && !ff->orphan;
}

static void step(struct fake_flow *front, struct fake_flow *back, struct sl_half *client)
{
	uint8_t op = (uint8_t)next(1);

	switch (op % 16) {
	case 0:
		raw_send(front);
		break;
	case 1:
		if (alive(back))
			http_send(back);
		break;
	case 2:
		fake_tick(&world.k, 1 + next(1) * (op & 16 ? 300 : 1));
		break;
	case 3:
		if (!front->flow.rx_fin)
			fake_send(front, "", 0, SL_F_FIN);
		break;
	case 4:
		world.k.inst.draining = true;
		if (op & 16)
			world.k.layer->drain(&world.k.inst);
		else
			fake_hand_over(front);
		break;
	case 5:
		if (alive(back))
			fake_reset(back, SL_ERROR);
		break;
	case 6:
		fake_die(front, op & 16);
		break;
	case 7:
		fake_credit(front, (uint32_t)next(2));
		break;
	case 8:
		if (alive(back))
			fake_credit(back, (uint32_t)next(2));
		break;
	case 9:
		fake_slots(&world.k, op & 16 ? UINT32_MAX : (uint32_t)next(1));
		break;
	default:
		record_send(front, client);
	}
}

static void all_over(void)
{
	fake_slots(&world.k, UINT32_MAX);
	for (struct sl_list *n = world.k.flows.next; n != &world.k.flows; n = n->next)
		fake_reset(sl_container_of(n, struct fake_flow, node), SL_ERROR_CLIENT);
	if (world.k.inst.active_flows)
		abort();   /* something of the connection is left */
	world.k.inst.draining = false;
	fake_flows_free(&world.k);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fake_flow *front, *back;
	struct sl_half client = {0};
	struct sl_tls_state st;
	struct sl_flow_marks tcp, http;
	uint8_t spoil;

	at = data;
	end = data + size;
	spoil = (uint8_t)next(1);
	world.k.window = spoil & NARROW ? 2000 : SL_FLOW_WINDOW;
	front = offer(spoil, &st, &tcp);
	back = front ? fake_last_opened(&world.k) : NULL;
	if (alive(back)) {
		uint64_t moved = world.k.inst.counters[SL_CNT_MOVED];

		if (spoil & EARLY_FIN)
			fake_send(front, "", 0, SL_F_FIN);
		http = marks(spoil & SPOIL_MARKS);
		fake_resumed(back, &http);
		nb_taken += world.k.inst.counters[SL_CNT_MOVED] - moved;
		client_set(&client, &st, tcp.kept & SL_MARK_VALID ? tcp.kept & ~(SL_MARK_UPDATE | SL_MARK_END) : sl_mark(0, 0));
	}
	for (int i = 0; i < OPS_MAX && at < end && alive(front); i++)
		step(front, back, &client);
	sl_half_wipe(&client);
	all_over();
	return 0;
}
