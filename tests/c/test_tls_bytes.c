/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes through the layer tls, whatever the room and the pieces. */
#include "tls_rig.h"

static void test_one_byte_at_a_time(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world *w = *state;

	for (unsigned i = 0; i < 2; i++) {
		struct client c;

		client_open(&c, w, versions[i]);
		c.piece = 1;
		if (versions[i] == TLS1_2_VERSION)
			w->k.slot_len = 1;   /* and one byte in each slot; our own record layer sends whole records only */
		client_connect(&c);
		talk(&c);
		talk(&c);
		w->k.slot_len = SL_BIG_LEN;
		client_close(&c);
	}
}

static uint8_t byte_at(size_t i)
{
	return (uint8_t)(i * 13 + i / 509);
}

static void bytes_make(uint8_t *p, size_t from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = byte_at(from + i);
}

static void bytes_check(const uint8_t *p, size_t from, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (p[i] != byte_at(from + i))
			fail_msg("byte %zu is wrong", from + i);
	}
}

enum { BODY_LEN = 1 << 20 };

static void upload(struct world *w, int version)
{
	uint8_t piece[20000];
	size_t sent = 0, got = 0, n;
	struct client c;

	w->k.window = 1000;
	client_open(&c, w, version);
	fake_credit(c.front, SL_FLOW_WINDOW);
	client_connect(&c);
	for (unsigned i = 1; got < BODY_LEN; i++) {
		if (sent < BODY_LEN && !fake_backlog(c.front)) {
			size_t len = sl_min(sizeof(piece), BODY_LEN - sent);

			bytes_make(piece, sent, len);
			assert_int_equal(SSL_write_ex(c.ssl, piece, len, &n), 1);
			sent += n;
			pump(&c);
		}
		/* what http did not take stays in front of tls, not in it: at most one record is in OpenSSL, and none
		 * in our own record layer, which waits for room for all of it */
		assert_true(c.back->flow.tx_window < (version == TLS1_3_VERSION ? 16384 : 1) || !w->k.slots || !fake_backlog(c.front));
		bytes_check(c.back->out, got, c.back->out_len);
		got += c.back->out_len;
		fake_out_drop(c.back);
		if (i % 40 == 0)
			fake_slots(&w->k, i % 80 ? 0 : UINT32_MAX);
		fake_credit(c.back, i * 37 % 9000 + 1);
		assert_true(i < 100000);
	}
	fake_slots(&w->k, UINT32_MAX);
	assert_int_equal(got, BODY_LEN);
	assert_int_equal(w->k.inst.bytes_in, BODY_LEN);
	client_close(&c);
}

static void download(struct world *w, int version)
{
	uint8_t piece[SL_BIG_LEN];
	static uint8_t in[70000];
	size_t sent = 0, got = 0, n;
	struct client c;

	client_open(&c, w, version);
	client_connect(&c);
	client_read(&c, (char *)in, 1);
	c.front->flow.tx_window = 0;
	for (unsigned i = 1; got < BODY_LEN; i++) {
		if (sent < BODY_LEN && !fake_backlog(c.back)) {
			size_t len = sl_min(i % 3 ? sizeof(piece) : i % 1000 + 1, BODY_LEN - sent);

			bytes_make(piece, sent, len);
			sent += len;
			fake_send(c.back, piece, len, 0);
		}
		if (i % 40 == 0)
			fake_slots(&w->k, i % 80 ? 0 : UINT32_MAX);
		fake_credit(c.front, i * 37 % 9000 + 1);
		BIO_write(c.in, c.front->out, (int)c.front->out_len);
		fake_out_drop(c.front);
		while (SSL_read_ex(c.ssl, in, sizeof(in), &n) == 1) {
			bytes_check(in, got, n);
			got += n;
		}
		ERR_clear_error();
		assert_true(i < 100000);
	}
	fake_slots(&w->k, UINT32_MAX);
	assert_int_equal(got, BODY_LEN);
	assert_int_equal(w->k.inst.bytes_out, BODY_LEN);
	client_close(&c);
}

static void test_upload_with_little_room_1_3(void **state)
{
	upload(*state, TLS1_3_VERSION);
}

static void test_upload_with_little_room_1_2(void **state)
{
	upload(*state, TLS1_2_VERSION);
}

static void test_download_with_little_room_1_3(void **state)
{
	download(*state, TLS1_3_VERSION);
}

static void test_download_with_little_room_1_2(void **state)
{
	download(*state, TLS1_2_VERSION);
}

/* What OpenSSL has decrypted goes on as room comes, without another byte from the client. */
static void test_rest_of_a_record(void **state)
{
	struct world *w = *state;
	struct client c;
	uint8_t body[10000];
	size_t n;

	w->k.window = 100;
	client_open(&c, w, TLS1_2_VERSION);
	fake_credit(c.front, SL_FLOW_WINDOW);
	client_connect(&c);
	bytes_make(body, 0, sizeof(body));
	SSL_write_ex(c.ssl, body, sizeof(body), &n);
	pump(&c);
	assert_int_equal(fake_backlog(c.front), 0);
	assert_int_equal(c.back->out_len, 100);
	fake_credit(c.back, 400);
	assert_int_equal(c.back->out_len, 500);
	SSL_shutdown(c.ssl);
	pump(&c);
	assert_false(c.back->out_fin);   /* not before the bytes in front of it */
	fake_credit(c.back, 9501);
	assert_true(c.back->out_fin);
	assert_int_equal(c.back->out_len, sizeof(body));
	bytes_check(c.back->out, 0, sizeof(body));
	client_close(&c);
}

static void test_one_slot_for_one_record(void **state)
{
	struct client c;
	uint8_t body[16384] = {0};
	size_t n;

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	c.front->nb_commits = 0;
	fake_send(c.back, body, sizeof(body), 0);
	assert_int_equal(c.front->nb_commits, 1);
	pump(&c);
	SSL_write_ex(c.ssl, body, sizeof(body), &n);
	SSL_write_ex(c.ssl, "tail", 4, &n);
	c.piece = 1 << 20;
	pump(&c);
	assert_int_equal(c.back->nb_commits, 2);
	assert_int_equal(c.back->out_len, sizeof(body) + 4);
	fake_out_drop(c.back);
	for (int i = 0; i < 10; i++)
		SSL_write_ex(c.ssl, "small", 5, &n);
	pump(&c);
	assert_int_equal(c.back->nb_commits, 3);   /* ten records, one slot */
	assert_int_equal(c.back->out_len, 50);
	client_close(&c);
}

static void test_key_update_without_room(void **state)
{
	struct client c;
	uint8_t filler[200] = {0};

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	expect_client(&c, "");
	c.front->flow.tx_window = 30;
	fake_send(c.back, filler, sizeof(filler), 0);   /* a record is half out */
	assert_int_equal(SSL_key_update(c.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
	client_write(&c, "question");
	expect_back(&c, "question");
	fake_credit(c.front, 10000);
	{
		char got[256];

		assert_int_equal(client_read(&c, got, sizeof(got)), sizeof(filler));
	}
	talk(&c);
	talk(&c);
	client_close(&c);
}

/* The client wants new keys both ways: the answer to it goes out before the next record. */
static void test_key_update_answer_without_room(void **state)
{
	struct client c;

	client_open(&c, *state, TLS1_3_VERSION);
	client_connect(&c);
	expect_client(&c, "");
	assert_int_equal(SSL_key_update(c.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
	client_write(&c, "one");
	expect_back(&c, "one");
	c.front->flow.tx_window = 0;
	fake_send(c.back, "answer", 6, 0);
	client_write(&c, "two");
	expect_back(&c, "two");
	fake_credit(c.front, 10000);
	expect_client(&c, "answer");
	talk(&c);
	client_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_one_byte_at_a_time), T(test_upload_with_little_room_1_3), T(test_upload_with_little_room_1_2),
		T(test_download_with_little_room_1_3), T(test_download_with_little_room_1_2),
		T(test_rest_of_a_record), T(test_one_slot_for_one_record), T(test_key_update_without_room),
		T(test_key_update_answer_without_room),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
