/* SPDX-License-Identifier: Apache-2.0 */
/* Every implementation of c/crypto against OpenSSL used by itself, on random records, wrong tags among them; and what
 * the front makes of an engine that fails or lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "aead_rig.h"
#include "crypto/measure.h"

enum { ROUNDS = 5000, ROOM = 16384 + 1 + SL_AEAD_TAG_LEN };

static void software(void **state)
{
	struct sl_aead *a;

	(void)state;
	assert_int_equal(sl_aead_open(NULL, &a), 0);
	assert_int_equal(sl_aead_kind(a), SL_CRYPTO_SOFTWARE);
	aead_check(a, ROUNDS);
	assert_int_equal(sl_aead_revive(a), -ENOENT);
	sl_aead_close(a);
}

static void multi_buffer(void **state)
{
	struct sl_aead_engine *engine;
	struct sl_aead *a;

	(void)state;
	sl_aead_multi_load();
	if (sl_aead_multi_open(&engine))
		skip();   /* no libipsec-mb in this build, or no AES instructions */
	assert_int_equal(sl_aead_open(engine, &a), 0);
	assert_int_equal(sl_aead_kind(a), SL_CRYPTO_MULTI_BUFFER);
	aead_check(a, ROUNDS);
	assert_false(sl_aead_is_broken(a));
	sl_aead_close(a);
}

/* ---- an engine that calls itself a device, and fails ----------------------------------------------------------------
 * */

enum mood { HONEST, STUCK, FALSE_ALARM, WRONG_BYTES };

struct fake {
	struct sl_aead_engine engine, *soft;
	enum mood mood;
	uint32_t runs;
};

static struct fake *fake_of(struct sl_aead_engine *e)
{
	return sl_container_of(e, struct fake, engine);
}

static int fake_key_make(struct sl_aead_engine *e, const struct sl_aead_secret *secret, void **ret)
{
	if (secret->alg == SL_AEAD_CHACHA20_POLY1305)
		return -EOPNOTSUPP;
	return fake_of(e)->soft->ops->key_make(fake_of(e)->soft, secret, ret);
}

static void fake_key_free(struct sl_aead_engine *e, void *key)
{
	fake_of(e)->soft->ops->key_free(fake_of(e)->soft, key);
}

static int fake_run(struct sl_aead_engine *e, void *const *keys, struct sl_aead_op *ops, uint32_t nb)
{
	struct fake *f = fake_of(e);
	uint32_t i;

	f->runs++;
	if (f->mood == STUCK)
		return -EIO;
	for (i = 0; i < nb; i++) {
		struct sl_aead_op copy = ops[i];
		uint8_t out[ROOM], tag[SL_AEAD_TAG_LEN];

		copy.out = out;   /* a device works on copies */
		copy.tag = tag;
		memcpy(tag, ops[i].tag, sizeof(tag));
		f->soft->ops->run(f->soft, &keys[i], &copy, 1);
		ops[i].status = f->mood == FALSE_ALARM && !sl_aead_op_seals(&ops[i]) ? -EBADMSG : copy.status;
		if (ops[i].status)
			continue;
		memcpy(ops[i].out, out, ops[i].len + (ops[i].tail >= 0));
		memcpy(ops[i].tag, tag, sizeof(tag));
		if (f->mood == WRONG_BYTES)
			ops[i].out[0] ^= 1;
	}
	return 0;
}

static void fake_close(struct sl_aead_engine *e)
{
	fake_of(e)->soft->ops->close(fake_of(e)->soft);
}

static const struct sl_aead_engine_ops fake_ops = { fake_key_make, fake_key_free, fake_run, fake_close };

static struct sl_aead *fake_open(struct fake *f, enum mood mood)
{
	struct sl_aead *a;

	*f = (struct fake){ .engine = { &fake_ops, SL_CRYPTO_DEVICE }, .mood = mood };
	assert_int_equal(sl_aead_soft_open(&f->soft), 0);
	assert_int_equal(sl_aead_open(&f->engine, &a), 0);
	return a;
}

static void a_device_that_fails_loses_no_record(void **state)
{
	static const enum mood moods[] = { STUCK, FALSE_ALARM };
	struct sl_aead *a;
	struct fake f;
	uint32_t i, runs;

	(void)state;
	for (i = 0; i < sl_nb(moods); i++) {
		a = fake_open(&f, HONEST);
		assert_int_equal(sl_aead_kind(a), SL_CRYPTO_DEVICE);
		aead_check(a, 200);   /* wrong tags are no reason to call it broken */
		assert_false(sl_aead_is_broken(a));
		f.mood = moods[i];
		aead_check(a, 200);
		assert_true(sl_aead_is_broken(a));
		assert_int_equal(sl_aead_fallbacks(a), 1);
		assert_int_equal(sl_aead_kind(a), SL_CRYPTO_SOFTWARE);
		runs = f.runs;
		aead_check(a, 50);
		assert_int_equal(f.runs, runs);   /* it is left alone */
		assert_int_equal(sl_aead_revive(a), -EIO);
		f.mood = HONEST;
		assert_int_equal(sl_aead_revive(a), 0);
		aead_check(a, 200);
		assert_int_equal(sl_aead_kind(a), SL_CRYPTO_DEVICE);
		assert_true(f.runs > runs + 6);
		sl_aead_close(a);
	}
}

static void a_device_that_lies_is_not_used(void **state)
{
	struct sl_aead *a;
	struct fake f;

	(void)state;
	a = fake_open(&f, WRONG_BYTES);
	assert_true(sl_aead_is_broken(a));
	aead_check(a, 100);
	sl_aead_close(a);
}

/* ---- measures ---------------------------------------------------------------------------------------------------- */

static bool clock_ticks;   /* as the clock of a guest on a busy machine: it stands, and makes up for that once in 1 ms */

int __real_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t)
{
	int err = __real_clock_gettime(id, t);

	if (clock_ticks)
		t->tv_nsec -= t->tv_nsec % 1000000;
	return err;
}

static void figures_are_of_what_is_used(void **state)
{
	struct sl_crypto_figures f = { 0 };
	struct sl_aead *a;
	int i;

	(void)state;
	assert_int_equal(sl_measure_choose(NULL, 1000000, &a, &f), 0);
	assert_int_equal(sl_measure_handshakes(1000000, &f.handshakes), 0);
	assert_int_equal(f.kind, sl_aead_kind(a));
	for (i = 0; i < 3; i++)
		assert_true(f.seal_mbps[i] > 0);
	assert_true(f.handshakes > 0);
	assert_true(sl_measure_cost_ns(&f) > 0);
	aead_check(a, 100);
	sl_aead_close(a);
}

/* However fast: not a thousand times as fast as with a clock that goes. */
static void a_clock_that_stands_makes_nobody_fast(void **state)
{
	struct sl_crypto_figures f = { 0 }, standing = { 0 };
	struct sl_aead *a;
	int i;

	(void)state;
	assert_int_equal(sl_aead_open(NULL, &a), 0);
	assert_int_equal(sl_measure_seal(a, 2000000, &f), 0);
	assert_int_equal(sl_measure_handshakes(2000000, &f.handshakes), 0);
	clock_ticks = true;
	assert_int_equal(sl_measure_seal(a, 2000000, &standing), 0);
	assert_int_equal(sl_measure_handshakes(2000000, &standing.handshakes), 0);
	clock_ticks = false;
	for (i = 0; i < 3; i++)
		assert_in_range(standing.seal_mbps[i], 1, 20 * f.seal_mbps[i]);
	assert_in_range(standing.handshakes, 1, 20 * f.handshakes);
	sl_aead_close(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(software),
		cmocka_unit_test(multi_buffer),
		cmocka_unit_test(a_device_that_fails_loses_no_record),
		cmocka_unit_test(a_device_that_lies_is_not_used),
		cmocka_unit_test(figures_are_of_what_is_used),
		cmocka_unit_test(a_clock_that_stands_makes_nobody_fast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
