/* SPDX-License-Identifier: Apache-2.0 */
/* As much of cmocka's interface as the tests of the edge use, for a machine whose cmocka is not at hand: arm64 under emulation. */
#ifndef SL_ARM64_CMOCKA_H
#define SL_ARM64_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
	const char *name;
	void (*test)(void **state);
	int (*setup)(void **state), (*teardown)(void **state);
};

#define fail_msg(...) (printf("%s:%d: ", __FILE__, __LINE__), printf(__VA_ARGS__), puts(""), exit(1))
#define assert_true(c) ((c) ? (void)0 : fail_msg("%s", #c))
#define assert_false(c) assert_true(!(c))
#define assert_int_equal(a, b) assert_true((unsigned long long)(a) == (unsigned long long)(b))
#define assert_memory_equal(a, b, len) assert_true(!memcmp(a, b, len))
#define assert_in_range(v, lo, hi) assert_true((v) >= (lo) && (v) <= (hi))
#define cmocka_unit_test_setup_teardown(f, up, down) {#f, f, up, down}
#define cmocka_run_group_tests(tests, up, down) sl_run_all(tests, sizeof(tests) / sizeof((tests)[0]))

static inline int sl_run_all(const struct CMUnitTest *tests, size_t nb)
{
	for (size_t i = 0; i < nb; i++) {
		void *state = NULL;

		if (tests[i].setup)
			tests[i].setup(&state);
		tests[i].test(&state);
		if (tests[i].teardown)
			tests[i].teardown(&state);
	}
	printf("%zu tests\n", nb);
	return 0;
}

#endif
