/* SPDX-License-Identifier: Apache-2.0 */
/* Tickets of the layer tls: any instance with the key resumes what another one began. */
#include "tls_rig.h"

/* Connects with *session (may be NULL); gives the new one back. Returns whether it was resumed. */
static bool resume(struct world *w, int version, SSL_SESSION **session)
{
	struct client c;
	bool resumed;
	char none[1];

	client_open(&c, w, version);
	SSL_set_tlsext_host_name(c.ssl, "some.example");
	if (*session)
		SSL_set_session(c.ssl, *session);
	client_connect(&c);
	client_read(&c, none, 1);   /* TLS 1.3 sends tickets after the handshake */
	talk(&c);
	resumed = SSL_session_reused(c.ssl);
	SSL_SESSION_free(*session);
	*session = version == TLS1_3_VERSION ? c.session : SSL_get1_session(c.ssl);
	if (version == TLS1_3_VERSION)
		c.session = NULL;
	client_close(&c);
	return resumed;
}

/* Of the bytes, as if it came from a file */
static SSL_SESSION *session_copy(SSL_SESSION *s)
{
	unsigned char *der = NULL;
	const unsigned char *p;
	int len = i2d_SSL_SESSION(s, &der);
	SSL_SESSION *copy;

	p = der;
	copy = d2i_SSL_SESSION(NULL, &p, len);
	OPENSSL_free(der);
	assert_non_null(copy);
	return copy;
}

static void pool_start(struct world *w, const uint8_t *keys)
{
	world_conf(w);
	for (w->nb_keys = 0; keys[w->nb_keys]; w->nb_keys++)
		memset(&w->keys[w->nb_keys], keys[w->nb_keys], sizeof(w->keys[0]));
	assert_int_equal(world_start(w, pairs, 1), 0);
}

static void resumption_check(int version)
{
	static const uint8_t keys_old[] = {1, 0}, keys_both[] = {2, 1, 0}, keys_new[] = {2, 0};
	static const uint8_t keys_three[] = {3, 2, 1, 0};
	struct world a, b, rotated, later, three;
	SSL_SESSION *s = NULL, *old;

	pool_start(&a, keys_old);
	pool_start(&b, keys_old);
	pool_start(&rotated, keys_both);
	pool_start(&later, keys_new);
	pool_start(&three, keys_three);
	assert_false(resume(&a, version, &s));
	assert_non_null(s);
	assert_true(resume(&b, version, &s));           /* another instance */
	assert_int_equal(b.k.inst.counters[SL_CNT_RESUMED], 1);
	assert_int_equal(b.k.inst.counters[SL_CNT_HANDSHAKES], 1);
	old = session_copy(s);
	assert_true(resume(&three, version, &old));      /* the last of three keys */
	SSL_SESSION_free(old);
	old = session_copy(s);
	assert_true(resume(&rotated, version, &s));      /* old key: accepted, and renewed */
	assert_non_null(s);
	assert_true(resume(&later, version, &s));
	assert_false(resume(&later, version, &old));     /* old key gone: a full handshake */
	SSL_SESSION_free(s);
	SSL_SESSION_free(old);
	world_stop(&a);
	world_stop(&b);
	world_stop(&rotated);
	world_stop(&later);
	world_stop(&three);
}

static void test_resumption_1_3(void **state)
{
	(void)state;
	resumption_check(TLS1_3_VERSION);
}

static void test_resumption_1_2(void **state)
{
	(void)state;
	resumption_check(TLS1_2_VERSION);
}

static void test_tickets_off(void **state)
{
	static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
	struct world w;

	(void)state;
	world_conf(&w);
	w.conf.tickets = 0;
	w.nb_keys = 0;
	assert_int_equal(world_start(&w, pairs, 1), 0);
	for (unsigned i = 0; i < 2; i++) {
		SSL_SESSION *s = NULL;

		assert_false(resume(&w, versions[i], &s));
		assert_true(!s || !SSL_SESSION_has_ticket(s));
		if (s)
			assert_false(resume(&w, versions[i], &s));
		SSL_SESSION_free(s);
	}
	world_stop(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_resumption_1_3), cmocka_unit_test(test_resumption_1_2),
		cmocka_unit_test(test_tickets_off),
	};

	return cmocka_run_group_tests(tests, pairs_make, pairs_free);
}
