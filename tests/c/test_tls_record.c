/* SPDX-License-Identifier: Apache-2.0 */
/* The record layer of TLS 1.3: the examples of RFC 8448 section 3, hostile records, key updates; and the sealed state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <openssl/crypto.h>

#include "base/base.h"
#include "layers/tls/move.h"

static struct sl_crypto crypto;

static int engine_use(struct sl_aead_engine *engine, enum sl_crypto_kind kind)
{
	struct sl_aead *aead;
	int err = sl_aead_open(engine, &aead);

	return err ? err : sl_aead_kind(aead) != kind ? -EIO : sl_crypto_init(&crypto, aead);
}

static int software_use(void **state)
{
	(void)state;
	return engine_use(NULL, SL_CRYPTO_SOFTWARE);
}

static struct sl_aead_engine *multi;

static int multi_use(void **state)
{
	(void)state;
	return engine_use(multi, SL_CRYPTO_MULTI_BUFFER);
}

static int crypto_free(void **state)
{
	(void)state;
	sl_crypto_free(&crypto);
	return 0;
}

static uint32_t hex(const char *text, uint8_t *out, size_t cap)
{
	size_t len = 0;

	assert_true(OPENSSL_hexstr2buf_ex(out, cap, &len, text, '\0'));
	return (uint32_t)len;
}

/* Opens the record of an example and seals its content again: the very same bytes must come out. */
static void example(const char *secret_hex, uint64_t seq, const char *record_hex, uint8_t type, const char *begins)
{
	uint8_t secret[SL_SECRET_MAX], want[512], r[512], again[512], content[64], got;
	uint32_t len = hex(record_hex, want, sizeof(want)), nb = hex(begins, content, sizeof(content));
	struct sl_half open = {0}, seal = {0};
	int n;

	hex(secret_hex, secret, sizeof(secret));
	assert_int_equal(sl_half_set(&open, &crypto, sl_suite_find(0x1301), secret, 0, false), 0);
	assert_int_equal(sl_half_set(&seal, &crypto, sl_suite_find(0x1301), secret, 0, true), 0);
	open.seq = seal.seq = seq;
	assert_int_equal(sl_record_len(want), len);
	memcpy(r, want, len);
	n = sl_record_open(&open, r, len, &got);
	assert_int_equal(n, len - SL_RECORD_EXTRA);
	assert_int_equal(got, type);
	assert_memory_equal(r + SL_RECORD_HEAD, content, nb);
	assert_true(sl_record_seal(&seal, type, r + SL_RECORD_HEAD, (uint32_t)n, again));
	assert_memory_equal(again, want, len);
	assert_true(open.seq == seq + 1 && seal.seq == seq + 1);
	sl_half_wipe(&open);
	sl_half_wipe(&seal);
}

static void test_examples_of_rfc_8448(void **state)
{
	static const char client[] = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";
	static const char server[] = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
	static const char bytes[] = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

	(void)state;
	example(client, 0, "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a"
			   "6292a2977014bd1e3deae63aeebb21694915e4", SL_RECORD_DATA, bytes);
	/* the session ticket was number 0 */
	example(server, 1, "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2"
			   "e5f0a21c0047c2abf332540dd032e167c2955d", SL_RECORD_DATA, bytes);
	example(client, 1, "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3", SL_RECORD_ALERT, "0100");
	example(server, 2, "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9", SL_RECORD_ALERT, "0100");
}

static void halves(struct sl_half *seal, struct sl_half *open, uint16_t suite)
{
	uint8_t secret[SL_SECRET_MAX];

	memset(secret, suite & 0xff, sizeof(secret));
	memset(seal, 0, sizeof(*seal));
	memset(open, 0, sizeof(*open));
	assert_int_equal(sl_half_set(seal, &crypto, sl_suite_find(suite), secret, 0, true), 0);
	assert_int_equal(sl_half_set(open, &crypto, sl_suite_find(suite), secret, 0, false), 0);
}

static void halves_wipe(struct sl_half *a, struct sl_half *b)
{
	sl_half_wipe(a);
	sl_half_wipe(b);
}

/* Every length that matters, through key updates, in each suite. */
static void test_there_and_back(void **state)
{
	static const uint32_t lens[] = {0, 1, 15, 16, 17, 255, 4096, SL_RECORD_CONTENT};
	static uint8_t p[SL_RECORD_CONTENT], r[SL_RECORD_MAX];

	(void)state;
	for (uint16_t suite = 0x1301; suite <= 0x1303; suite++) {
		struct sl_half seal, open;

		halves(&seal, &open, suite);
		for (unsigned i = 0; i < 3 * sl_nb(lens); i++) {
			uint32_t len = lens[i % sl_nb(lens)];
			uint8_t type;

			memset(p, (int)i, len);
			assert_true(sl_record_seal(&seal, SL_RECORD_DATA, p, len, r));
			assert_int_equal(sl_record_open(&open, r, (uint32_t)sl_record_len(r), &type), len);
			assert_int_equal(type, SL_RECORD_DATA);
			assert_memory_equal(r + SL_RECORD_HEAD, p, len);
			if (i % sl_nb(lens))
				continue;
			assert_int_equal(sl_half_update(&seal, &crypto), 0);
			assert_int_equal(sl_half_update(&open, &crypto), 0);
			assert_true(seal.gen == i / sl_nb(lens) + 1 && seal.seq == 0);
		}
		halves_wipe(&seal, &open);
	}
}

static void test_each_changed_byte_is_found(void **state)
{
	uint8_t p[40] = "some bytes of a client", r[64], bad[64], type;
	struct sl_half seal, open;

	(void)state;
	for (uint16_t suite = 0x1301; suite <= 0x1303; suite++) {
		uint32_t len = sizeof(p) + SL_RECORD_EXTRA;

		halves(&seal, &open, suite);
		assert_true(sl_record_seal(&seal, SL_RECORD_DATA, p, sizeof(p), r));
		for (unsigned i = 0; i < len; i++) {
			memcpy(bad, r, len);
			bad[i] ^= 1u << i % 8;
			assert_int_equal(sl_record_open(&open, bad, len, &type), -SL_ALERT_BAD_RECORD_MAC);
			assert_int_equal(open.seq, 0);
		}
		open.seq = 1;   /* out of turn */
		memcpy(bad, r, len);
		assert_int_equal(sl_record_open(&open, bad, len, &type), -SL_ALERT_BAD_RECORD_MAC);
		halves_wipe(&seal, &open);
	}
}

static void test_heads_and_padding(void **state)
{
	static const struct {
		uint8_t head[5];
		int len;
	} heads[] = {
		{{23, 3, 3, 0x41, 0x00}, SL_RECORD_MAX},
		{{23, 3, 3, 0x41, 0x01}, -SL_ALERT_RECORD_OVERFLOW},
		{{23, 3, 3, 0xff, 0xff}, -SL_ALERT_RECORD_OVERFLOW},
		{{23, 9, 9, 0, 17}, 22},   /* the version is not looked at: section 5.2 */
		{{23, 3, 3, 0, 16}, -SL_ALERT_BAD_RECORD_MAC},
		{{23, 3, 3, 0, 0}, -SL_ALERT_BAD_RECORD_MAC},
		{{20, 3, 3, 0, 1}, -SL_ALERT_UNEXPECTED_MESSAGE},
		{{21, 3, 3, 0, 2}, -SL_ALERT_UNEXPECTED_MESSAGE},
		{{22, 3, 3, 0, 30}, -SL_ALERT_UNEXPECTED_MESSAGE},
		{{0x80, 0, 0, 0, 30}, -SL_ALERT_UNEXPECTED_MESSAGE},
	};
	static uint8_t p[SL_RECORD_CONTENT + 200], r[SL_RECORD_MAX];
	struct sl_half seal, open;
	uint8_t type;

	(void)state;
	for (unsigned i = 0; i < sl_nb(heads); i++)
		assert_int_equal(sl_record_len(heads[i].head), heads[i].len);
	halves(&seal, &open, 0x1301);
	memset(p, 0, sizeof(p));
	memcpy(p, "\x07\x17", 2);   /* one byte of data, its type, then 98 of padding and a zero as type: sealed by hand */
	assert_true(sl_record_seal(&seal, 0, p, 100, r));
	assert_int_equal(sl_record_open(&open, r, 100 + SL_RECORD_EXTRA, &type), 1);
	assert_true(type == SL_RECORD_DATA && r[SL_RECORD_HEAD] == 7);
	memset(p, 0, 100);   /* nothing but padding */
	assert_true(sl_record_seal(&seal, 0, p, 100, r));
	assert_int_equal(sl_record_open(&open, r, 100 + SL_RECORD_EXTRA, &type), -SL_ALERT_UNEXPECTED_MESSAGE);
	memset(p, 1, sizeof(p));   /* more content than a record may have, in one that is not too long */
	assert_true(sl_record_seal(&seal, SL_RECORD_DATA, p, sizeof(p), r));
	assert_int_equal(sl_record_open(&open, r, sizeof(p) + SL_RECORD_EXTRA, &type), -SL_ALERT_RECORD_OVERFLOW);
	halves_wipe(&seal, &open);
}

static void test_sealed_state(void **state)
{
	struct sl_pool_key pool = {.key = {1, 2, 3}}, other = {.key = {1, 2, 4}};
	struct sl_tls_state st, got;
	uint8_t sealed[SL_SEALED_LEN], again[SL_SEALED_LEN];

	(void)state;
	memset(&st, 0x5a, sizeof(st));
	assert_true(sl_state_seal(&crypto, &pool, &st, sealed));
	assert_true(sl_state_seal(&crypto, &pool, &st, again));
	assert_memory_not_equal(sealed + SL_SEAL_SALT, again + SL_SEAL_SALT, sizeof(st));   /* a key of its own for each */
	assert_true(sl_state_unseal(&crypto, &pool, sealed, sizeof(sealed), &got));
	assert_memory_equal(&got, &st, sizeof(st));
	assert_false(sl_state_unseal(&crypto, &other, sealed, sizeof(sealed), &got));
	assert_false(sl_state_unseal(&crypto, &pool, sealed, sizeof(sealed) - 1, &got));
	for (unsigned i = 0; i < sizeof(sealed); i++) {
		sealed[i] ^= 1u << i % 8;
		assert_false(sl_state_unseal(&crypto, &pool, sealed, sizeof(sealed), &got));
		sealed[i] ^= 1u << i % 8;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_examples_of_rfc_8448), cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_each_changed_byte_is_found), cmocka_unit_test(test_heads_and_padding),
		cmocka_unit_test(test_sealed_state),
	};

	int failed = cmocka_run_group_tests_name("OpenSSL", tests, software_use, crypto_free);

	sl_aead_multi_load();
	if (!sl_aead_multi_open(&multi))   /* else this processor or this build has it not: see test_aead */
		failed += cmocka_run_group_tests_name("libipsec-mb", tests, multi_use, crypto_free);
	return failed;
}
