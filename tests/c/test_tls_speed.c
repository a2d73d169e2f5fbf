/* SPDX-License-Identifier: Apache-2.0 */
/* An accelerator that fails under connections of the layer tls, and comes back: none of them notices, VMStatus tells. */
#include "tls_rig.h"

#include "crypto/measure.h"

struct card {
	struct sl_aead_engine engine, *soft;
	bool dead;
	uint32_t runs;
};

static struct card *card_of(struct sl_aead_engine *e)
{
	return sl_container_of(e, struct card, engine);
}

static int card_key_make(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret)
{
	return card_of(e)->soft->ops->key_make(card_of(e)->soft, secret, ret);
}

static void card_key_free(struct sl_aead_engine *e, void *key)
{
	card_of(e)->soft->ops->key_free(card_of(e)->soft, key);
}

static int card_run(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	struct card *c = card_of(e);

	c->runs++;
	return c->dead ? -EIO : c->soft->ops->run(c->soft, keys, ops, nb);
}

static void card_close(struct sl_aead_engine *e)
{
	card_of(e)->soft->ops->close(card_of(e)->soft);
}

static struct card card;   /* of the world */
static int choices;

/* In the place of the real one: the card is what is fastest. */
int __wrap_sl_measure_choose(struct sl_aead_engine *device, uint64_t budget_ns, struct sl_aead **ret,
			     struct sl_crypto_figures *figures);
int __wrap_sl_measure_choose(struct sl_aead_engine *device, uint64_t budget_ns, struct sl_aead **ret,
			     struct sl_crypto_figures *figures)
{
	static const struct sl_aead_engine_ops ops = { card_key_make, card_key_free, card_run, card_close };

	(void)device;
	choices++;
	card = (struct card){ .engine = { &ops, SL_CRYPTO_DEVICE } };
	if (sl_aead_soft_open(&card.soft) || sl_aead_open(&card.engine, ret))
		return -ENOMEM;
	return sl_measure_seal(*ret, budget_ns, figures);
}

static void test_a_card_fails_and_comes_back(void **state)
{
	struct world *w = *state;
	const struct sl_crypto_figures *f = &w->k.inst.crypto;
	struct client before, after;
	uint32_t handshakes = f->handshakes, runs;

	assert_int_equal(f->kind, SL_CRYPTO_DEVICE);

	client_open(&before, w, TLS1_3_VERSION);
	client_connect(&before);
	runs = card.runs;
	talk(&before);
	assert_true(card.runs > runs);
	card.dead = true;
	talk(&before);   /* with the card's keys */
	client_open(&after, w, TLS1_3_VERSION);
	client_connect(&after);
	talk(&after);
	fake_tick(&w->k, 1000);
	assert_int_equal(f->kind, SL_CRYPTO_SOFTWARE);
	assert_int_equal(f->fallbacks, 1);
	assert_true(f->seal_mbps[0] && f->seal_mbps[2] && f->handshakes == handshakes);

	card.dead = false;
	fake_tick(&w->k, 1000);
	assert_int_equal(f->kind, SL_CRYPTO_DEVICE);
	runs = card.runs;
	talk(&after);   /* with keys that it got while the card was dead */
	assert_true(card.runs >= runs + 2);
	assert_int_equal(f->fallbacks, 1);
	client_close(&before);
	client_close(&after);
}

/* What a warm instance has measured is not measured again by the ones that it becomes. */
static void test_what_was_rehearsed_is_told(void **state)
{
	struct world *w = *state;
	struct sl_instance *inst = &w->k.inst;
	struct client c;
	int before, pieces = 1;

	world_stop(w);
	while (sl_layer_tls.rehearse(inst))
		pieces++;
	assert_int_equal(pieces, 2);
	assert_true(inst->rehearsed.seal_mbps[0] && inst->rehearsed.seal_mbps[2] && inst->rehearsed.handshakes);
	before = choices;
	inst->crypto = (struct sl_crypto_figures){ 0 };
	assert_int_equal(fake_start(&w->k), 0);
	assert_int_equal(choices, before);
	assert_memory_equal(&inst->crypto, &inst->rehearsed, sizeof(inst->crypto));
	client_open(&c, w, TLS1_3_VERSION);
	client_connect(&c);
	talk(&c);
	client_close(&c);
}

/* One that was assigned in the middle of it measures as if there had been nothing. */
static void test_half_a_rehearsal_is_none(void **state)
{
	struct world *w = *state;
	struct sl_instance *inst = &w->k.inst;
	int before;

	world_stop(w);
	assert_true(sl_layer_tls.rehearse(inst));
	assert_int_equal(inst->rehearsed.handshakes, 0);
	before = choices;
	assert_int_equal(fake_start(&w->k), 0);
	assert_int_equal(choices, before + 1);
	assert_true(inst->crypto.handshakes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_a_card_fails_and_comes_back),
		T(test_what_was_rehearsed_is_told),
		T(test_half_a_rehearsal_is_none),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
