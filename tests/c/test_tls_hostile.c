/* SPDX-License-Identifier: Apache-2.0 */
/* Clients of the layer tls that break TLS. */
#include "tls_rig.h"

static void test_not_a_client_hello(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		uint8_t alert;       /* 0: none. What does not even look like TLS would not understand one */
	} rows[] = {
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27, 0},
		{"SSH-2.0-OpenSSH\r\n", 17, 0},
		{"\x17\x03\x03\x00\x04" "data", 9, SSL_AD_UNEXPECTED_MESSAGE},
		{"\x16\x03\x01\x00\x04\x02\x00\x00\x00", 9, SSL_AD_UNEXPECTED_MESSAGE},   /* a ServerHello */
		{"\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9, SSL_AD_DECODE_ERROR},   /* an empty ClientHello */
		{"\x16\x03\x01\x00\x04\x01\xff\xff\xff", 9, SSL_AD_ILLEGAL_PARAMETER},   /* one of 16 MiB */
		{"\x16\x03\x01\x7f\xff", 5, SSL_AD_RECORD_OVERFLOW},
	};
	struct world *w = *state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct client c;

		client_open(&c, w, 0);
		fake_send(c.front, rows[i].bytes, rows[i].len, 0);
		assert_int_equal(c.front->out_len, rows[i].alert ? 7 : 0);
		if (rows[i].alert) {
			assert_int_equal(c.front->out[0], 21);
			assert_int_equal(c.front->out[5], 2);   /* fatal */
			assert_int_equal(c.front->out[6], rows[i].alert);
		}
		assert_true(c.front->out_fin && !c.front->ended);
		fake_send(c.front, "more", 4, SL_F_FIN);
		assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], i + 1);
		assert_int_equal(w->k.inst.active_flows, 0);
		client_close(&c);
	}
}

static uint32_t random_next(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

static void test_garbage(void **state)
{
	struct world *w = *state;
	uint8_t bytes[600];
	uint32_t x = 1;

	for (int i = 0; i < 300; i++) {
		struct client c;

		client_open(&c, w, 0);
		for (unsigned k = 0; k < sizeof(bytes); k++)
			bytes[k] = (uint8_t)random_next(&x);
		if (i % 2) {   /* a record header that is right */
			bytes[0] = 22, bytes[1] = 3, bytes[2] = 1;
			bytes[3] = (uint8_t)(x & 1), bytes[4] = (uint8_t)(x >> 8);
			bytes[5] = (uint8_t)(i % 4 == 1);
		}
		fake_send(c.front, bytes, x % sizeof(bytes) + 1, 0);
		fake_send(c.front, bytes, sizeof(bytes), SL_F_FIN);
		assert_true(c.front->ended && c.front->out_fin);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.nb_opened, 0);
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 300);
}

static void test_client_hello_cut_anywhere(void **state)
{
	struct world *w = *state;
	struct client c;
	char *p;
	long n;

	client_open(&c, w, 0);
	SSL_do_handshake(c.ssl);
	ERR_clear_error();
	n = BIO_get_mem_data(c.out, &p);
	for (long i = 0; i < n; i += i < 100 ? 1 : 7) {
		struct client d;

		client_open(&d, w, 0);
		fake_send(d.front, p, (size_t)i, SL_F_FIN);
		assert_true(d.front->ended && d.front->out_fin);
		client_close(&d);
	}
	assert_int_equal(w->k.nb_opened, 0);
	client_close(&c);
	assert_int_equal(w->k.inst.active_flows, 1);
}

static void test_mutated_handshakes(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;
	uint32_t x = 99;

	for (int i = 0; i < 400; i++) {
		struct client c;
		uint8_t copy[4096];
		char *p;

		client_open(&c, w, versions[i % 2]);
		SSL_do_handshake(c.ssl);
		for (int flight = 0; flight < 2 && !c.front->ended; flight++) {
			long n = BIO_get_mem_data(c.out, &p);

			n = sl_min(n, (long)sizeof(copy));
			memcpy(copy, p, (size_t)n);
			(void)BIO_reset(c.out);
			if (n && flight == (i / 2) % 2)
				copy[random_next(&x) % (unsigned long)n] ^= (uint8_t)(1 << x % 8);
			fake_send(c.front, copy, (size_t)n, 0);
			BIO_write(c.in, c.front->out, (int)c.front->out_len);
			fake_out_drop(c.front);
			SSL_do_handshake(c.ssl);
			ERR_clear_error();
		}
		if (!c.front->ended)
			fake_reset(c.front, SL_ERROR_CLIENT);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_broken_record(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;

	for (unsigned i = 0; i < 2; i++) {
		struct client c;
		char *p;
		long n;

		client_open(&c, w, versions[i]);
		client_connect(&c);
		client_write(&c, "good");
		SSL_write(c.ssl, "evil", 4);
		n = BIO_get_mem_data(c.out, &p);
		p[n - 1] ^= 1;
		pump(&c);
		expect_back(&c, "good");
		assert_true(c.back->out_reset);
		assert_int_equal(c.back->out_status, SL_ERROR_PROTOCOL);
		assert_true(c.front->out_fin && !c.front->out_reset);
		expect_client(&c, "");
		assert_int_equal(c.alert, SSL_AD_BAD_RECORD_MAC);
		client_close(&c);
	}
	assert_int_equal(w->k.inst.counters[SL_CNT_CLIENT_ERROR], 2);
}

static void test_renegotiation_is_refused(void **state)
{
	struct client c;

	client_open(&c, *state, TLS1_2_VERSION);
	client_connect(&c);
	assert_int_equal(SSL_renegotiate(c.ssl), 1);
	SSL_do_handshake(c.ssl);
	ERR_clear_error();
	for (int i = 0; i < 3; i++) {
		char none[1];
		size_t n;
		char *p;

		n = (size_t)BIO_get_mem_data(c.out, &p);
		fake_send(c.front, p, n, 0);
		(void)BIO_reset(c.out);
		BIO_write(c.in, c.front->out, (int)c.front->out_len);
		fake_out_drop(c.front);
		SSL_read(c.ssl, none, 0);
		SSL_do_handshake(c.ssl);
		ERR_clear_error();
	}
	assert_int_equal(c.alert, SSL_AD_NO_RENEGOTIATION);
	assert_int_equal(((struct world *)*state)->k.inst.counters[SL_CNT_HANDSHAKES], 1);
	client_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_not_a_client_hello), T(test_garbage), T(test_client_hello_cut_anywhere),
		T(test_mutated_handshakes), T(test_broken_record), T(test_renegotiation_is_refused),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
