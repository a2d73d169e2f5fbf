/* SPDX-License-Identifier: Apache-2.0 */
/* c/crypto on a device of DPDK, here one of software: right, then stopped under work, then back.
 *
 * usage: test_aead_device DEVICE    such as crypto_openssl; on a machine that has one, 0000:01:00.1 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <rte_cryptodev.h>

#include "aead_rig.h"
#include "crypto/measure.h"

enum { ROUNDS = 3000 };

static const char *device;
static char folder[] = "/tmp/slt-XXXXXX";

static int device_open(void **state)
{
	struct sl_aead_device_conf conf = { .device = device, .runtime_dir = folder };
	struct sl_aead_engine *engine;
	char why[SL_AEAD_WHY_LEN];
	struct sl_aead *a;
	int err = sl_aead_device_load(&conf, why);

	err = err ? err : sl_aead_device_open(&engine, why);
	if (err) {
		fprintf(stderr, "%s: %s\n", device, why);
		return -1;
	}
	*state = sl_aead_open(engine, &a) ? NULL : a;
	return *state ? 0 : -1;
}

static int device_close(void **state)
{
	sl_aead_close(*state);
	return 0;
}

static void gives_the_bytes_of_openssl(void **state)
{
	assert_int_equal(sl_aead_kind(*state), SL_CRYPTO_DEVICE);
	aead_check(*state, ROUNDS);
	assert_false(sl_aead_is_broken(*state));
}

static void loses_nothing_when_it_stops_and_comes_back(void **state)
{
	rte_cryptodev_stop(0);
	aead_check(*state, 300);
	assert_true(sl_aead_is_broken(*state));
	assert_int_equal(sl_aead_kind(*state), SL_CRYPTO_SOFTWARE);
	assert_int_equal(sl_aead_revive(*state), 0);   /* starts it again */
	aead_check(*state, ROUNDS);
	assert_int_equal(sl_aead_kind(*state), SL_CRYPTO_DEVICE);
	assert_int_equal(sl_aead_fallbacks(*state), 1);
}

static void is_measured(void **state)
{
	struct sl_crypto_figures f = { 0 };

	assert_int_equal(sl_measure_seal(*state, 1000000, &f), 0);
	assert_int_equal(f.kind, SL_CRYPTO_DEVICE);
	assert_true(f.seal_mbps[0] && f.seal_mbps[1] && f.seal_mbps[2]);
	print_message("%s: %u %u %u MB/s\n", device, f.seal_mbps[0], f.seal_mbps[1], f.seal_mbps[2]);
}

static void wrong_devices_are_refused(void)
{
	struct sl_aead_device_conf conf = { .device = device, .runtime_dir = folder };
	struct sl_aead_engine *engine;
	char why[SL_AEAD_WHY_LEN];

	if (!sl_aead_device_load(&conf, why) && !sl_aead_device_open(&engine, why))
		exit(1);
	printf("%s\n", why);
}

static void folder_remove(void)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -r %s", folder);
	if (system(command))
		perror(command);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gives_the_bytes_of_openssl),
		cmocka_unit_test(loses_nothing_when_it_stops_and_comes_back),
		cmocka_unit_test(is_measured),
	};
	int failed;

	if (argc < 2 || !mkdtemp(folder))
		return 2;
	device = argv[1];
	atexit(folder_remove);
	if (argc > 2) {        /* one that can not do it */
		wrong_devices_are_refused();
		return 0;
	}
	failed = cmocka_run_group_tests(tests, device_open, device_close);
	return failed;
}
