/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of the classifier in user space: the copy finds what it was given and nothing else, the LRU table forgets
 * what was used longest ago. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "classifier/table.h"

static struct sl_service_key service_key(uint32_t n)
{
	struct sl_service_key key = { .addr = { [12] = 10, [13] = 77 }, .port = (uint16_t)n, .proto = 6 };

	return key;
}

static void copy_finds_all_of_a_full_map(void **state)
{
	struct sl_copy *t = calloc(1, sizeof(*t));
	struct sl_service_key key;
	struct sl_copy_slot *s;
	uint32_t n;

	(void)state;
	for (n = 0; n < SL_COPY_MAX; n++) {
		key = service_key(n);
		s = sl_copy_slot(t, &key, sizeof(key));
		assert_false(s->is_used);
		memcpy(s->key, &key, sizeof(key));
		s->value[0] = (uint8_t)n;
		s->is_used = 1;
	}
	for (n = 0; n < 4 * SL_COPY_MAX; n++) {
		uint8_t *value;

		key = service_key(n);
		value = sl_copy_find(t, &key, sizeof(key));
		assert_int_equal(value != NULL, n < SL_COPY_MAX);
		assert_true(!value || *value == (uint8_t)n);
	}
	free(t);
}

static struct sl_flow_key flow_key(uint32_t n)
{
	struct sl_flow_key key = { .sport = (uint16_t)n, .dport = 443, .proto = 6 };

	return key;
}

static void put(struct sl_lru *t, uint32_t n)
{
	struct sl_flow_key key = flow_key(n);
	struct sl_flow flow = { .gen = n, .vm_id = 1 };

	sl_lru_put(t, &key, &flow, sizeof(flow));
}

/* Its gen, or UINT32_MAX. */
static uint32_t find(struct sl_lru *t, uint32_t n)
{
	struct sl_flow_key key = flow_key(n);
	struct sl_flow *flow = sl_lru_find(t, &key);

	return flow ? flow->gen : UINT32_MAX;
}

static void lru_forgets_the_longest_unused(void **state)
{
	struct sl_lru_bucket bucket = { 0 };
	struct sl_lru t = { &bucket, 1, UINT32_MAX - 4, 7 };   /* the clock wraps meanwhile */
	uint32_t n;

	(void)state;
	for (n = 1; n <= SL_LRU_WAYS; n++, t.now++)
		put(&t, n);
	assert_int_equal(find(&t, 1), 1);    /* used again: 2 is the oldest now */
	put(&t, 100);
	assert_int_equal(find(&t, 2), UINT32_MAX);
	assert_int_equal(find(&t, 100), 100);
	for (n = 3; n <= SL_LRU_WAYS; n++)
		assert_int_equal(find(&t, n), n);
	assert_int_equal(find(&t, 1), 1);
}

static void lru_replaces_in_place(void **state)
{
	struct sl_lru_bucket bucket = { 0 };
	struct sl_lru t = { &bucket, 1, 1, 7 };
	struct sl_flow_key key = flow_key(5);
	struct sl_flow flow = { .gen = 77 };
	uint32_t i, used = 0;

	(void)state;
	put(&t, 5);
	sl_lru_put(&t, &key, &flow, sizeof(flow));
	assert_int_equal(find(&t, 5), 77);
	for (i = 0; i < SL_LRU_WAYS; i++)
		used += bucket.tag[i] != 0;
	assert_int_equal(used, 1);
}

static void lru_holds_what_it_promises(void **state)
{
	struct sl_lru t = { calloc(SL_FLOW_BUCKETS, sizeof(struct sl_lru_bucket)), SL_FLOW_BUCKETS, 1, 7 };
	uint32_t n, lost = 0;

	(void)state;
	for (n = 0; n < SL_FLOW_MAX; n++) {
		struct sl_flow_key key = { .src = { (uint8_t)(n >> 16) }, .sport = (uint16_t)n, .proto = 6 };
		struct sl_flow flow = { .gen = n };

		sl_lru_put(&t, &key, &flow, sizeof(flow));
	}
	for (n = 0; n < SL_FLOW_MAX; n++) {
		struct sl_flow_key key = { .src = { (uint8_t)(n >> 16) }, .sport = (uint16_t)n, .proto = 6 };

		lost += !sl_lru_find(&t, &key);
	}
	assert_true(lost < SL_FLOW_MAX / 50);   /* those of buckets that happened to be full */
	free(t.bucket);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copy_finds_all_of_a_full_map),
		cmocka_unit_test(lru_forgets_the_longest_unused),
		cmocka_unit_test(lru_replaces_in_place),
		cmocka_unit_test(lru_holds_what_it_promises),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
