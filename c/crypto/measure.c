/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/measure.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>

enum {
	SIZES = 3,
	BATCH = SL_AEAD_BATCH,
	SOFT_BATCH_LEN = 16384,
	DEVICE_ROUNDS = 8,
	HANDSHAKES_MIN = 2,       /* the first one is slower than all others */
	PIECE_NS = 20000,
};

static const uint32_t sizes[SIZES] = { 256, 1400, 16384 };

/* What a processor does is timed by the thread's own clock, a device's work by the clock on the wall. Of either the
 * fastest piece counts: in the others something else may have run, here or on the other half of this core. A piece
 * takes PIECE_NS at least: a guest's clock can stand still for a while, and nothing is done in no time. */
static uint64_t clock_ns(enum sl_crypto_kind kind)
{
	struct timespec t;

	clock_gettime(kind == SL_CRYPTO_DEVICE ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

struct rig {
	struct sl_aead_key *key;
	uint64_t seq;
	uint8_t head[SL_AEAD_HEAD_LEN];
	uint8_t in[16384];
	uint8_t out[BATCH][16384 + 1 + SL_AEAD_TAG_LEN];
	struct sl_aead_op ops[BATCH];
};

static uint32_t mbps(struct sl_aead *a, struct rig *r, uint32_t len, uint64_t budget_ns)
{
	/* a device needs many at a time to be fast; a processor does not, and a slow one should not overrun the budget */
	enum sl_crypto_kind kind = sl_aead_kind(a);
	uint32_t nb = kind == SL_CRYPTO_DEVICE ? BATCH : sl_min((uint32_t)BATCH, SOFT_BATCH_LEN / len), i, rounds = 0;
	uint64_t start = clock_ns(kind), before = start, now = start, done = 0, best = 1;   /* 0: it was not measured */

	do {
		for (i = 0; i < nb; i++)
			r->ops[i] = (struct sl_aead_op){ .key = r->key, .seq = r->seq++, .head = r->head, .in = r->in,
							 .out = r->out[i], .tag = r->out[i] + len + 1, .len = len,
							 .tail = 23 };
		sl_aead_run(a, r->ops, nb);
		now = clock_ns(kind);
		done += (uint64_t)nb * len;
		if (now - before >= PIECE_NS) {
			best = sl_max(best, done * 1000 / (now - before));
			before = now;
			done = 0;
		}
		if (sl_aead_kind(a) != kind)    /* it failed */
			return mbps(a, r, len, budget_ns);
	} while (now - start < budget_ns || (kind == SL_CRYPTO_DEVICE && ++rounds < DEVICE_ROUNDS));
	return (uint32_t)best;
}

int sl_measure_seal(struct sl_aead *a, uint64_t budget_ns, struct sl_crypto_figures *ret)
{
	static const uint8_t key[SL_AEAD_KEY_MAX] = { 1 }, iv[SL_AEAD_IV_LEN] = { 2 };
	struct sl_aead_secret secret = { SL_AEAD_AES_256_GCM, true, key };
	struct rig *r = calloc(1, sizeof(*r));
	int i, err = r ? sl_aead_key_make(a, &secret, iv, &r->key) : -ENOMEM;

	for (i = 0; !err && i < SIZES; i++) {
		mbps(a, r, sizes[i], 0);    /* warm */
		ret->seal_mbps[i] = mbps(a, r, sizes[i], budget_ns);
	}
	if (r)
		sl_aead_key_free(a, r->key);
	free(r);
	ret->kind = (uint8_t)sl_aead_kind(a);
	ret->fallbacks = sl_aead_fallbacks(a);
	return err;
}

uint64_t sl_measure_cost_ns(const struct sl_crypto_figures *f)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < SIZES; i++)
		sum += f->seal_mbps[i] ? (uint64_t)sizes[i] * 1000 / f->seal_mbps[i] : UINT32_MAX;
	return sum;
}

/* ---- handshakes -------------------------------------------------------------------------------------------------- */

/* A certificate that nobody will ever check. Its times are fixed: from the clock, they would be made with the machine's
 * time zone, and a sandbox opens no file. */
static X509 *certificate_make(EVP_PKEY *key)
{
	X509 *x = X509_new();
	bool good = x && X509_set_version(x, 2) && ASN1_INTEGER_set(X509_get_serialNumber(x), 1) &&
		    ASN1_TIME_set_string(X509_getm_notBefore(x), "20200101000000Z") &&
		    ASN1_TIME_set_string(X509_getm_notAfter(x), "21000101000000Z") &&
		    X509_set_pubkey(x, key) && X509_sign(x, key, EVP_sha256());

	if (good)
		return x;
	X509_free(x);
	return NULL;
}

static SSL_CTX *server_make(void)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = key ? certificate_make(key) : NULL;
	bool good = ctx && x && SSL_CTX_use_certificate(ctx, x) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1 &&
		    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) && SSL_CTX_set_num_tickets(ctx, 0);

	X509_free(x);
	EVP_PKEY_free(key);
	if (good)
		return ctx;
	SSL_CTX_free(ctx);
	return NULL;
}

/* One side's turn. False: it failed, or waits although there is something to read. */
static bool turn(SSL *ssl, uint64_t *spent_ns)
{
	uint64_t start = clock_ns(SL_CRYPTO_SOFTWARE);
	int r = SSL_do_handshake(ssl);

	*spent_ns += clock_ns(SL_CRYPTO_SOFTWARE) - start;
	return r == 1 || SSL_get_error(ssl, r) == SSL_ERROR_WANT_READ;
}

/* Both sides in turns, over a pair of memories. */
static bool handshake(SSL_CTX *server_ctx, SSL_CTX *client_ctx, uint64_t *server_ns, uint64_t *client_ns)
{
	SSL *server = SSL_new(server_ctx), *client = SSL_new(client_ctx);
	BIO *one = NULL, *other = NULL;
	bool good = server && client && BIO_new_bio_pair(&one, 0, &other, 0);
	int i;

	if (good) {
		SSL_set_bio(server, one, one);
		SSL_set_bio(client, other, other);
		SSL_set_accept_state(server);
		SSL_set_connect_state(client);
		for (i = 0; good && i < 4 && !(SSL_is_init_finished(server) && SSL_is_init_finished(client)); i++)
			good = turn(client, client_ns) && turn(server, server_ns);
		good = good && SSL_is_init_finished(server);
	}
	SSL_free(server);
	SSL_free(client);
	return good;
}

int sl_measure_handshakes(uint64_t budget_ns, uint32_t *ret)
{
	SSL_CTX *server = server_make(), *client = SSL_CTX_new(TLS_client_method());
	uint64_t spent_ns = 0, best_ns = UINT64_MAX;
	int rounds = 0;
	bool good = server && client;

	do {
		uint64_t server_ns = 0, client_ns = 0;

		good = good && handshake(server, client, &server_ns, &client_ns);
		if (server_ns >= PIECE_NS)
			best_ns = sl_min(best_ns, server_ns);
		spent_ns += server_ns + client_ns;
	} while (good && (++rounds < HANDSHAKES_MIN || spent_ns < budget_ns));
	SSL_CTX_free(server);
	SSL_CTX_free(client);
	ERR_clear_error();
	if (!good)
		return -EIO;
	*ret = (uint32_t)sl_max(1000000000 / best_ns, (uint64_t)1);
	return 0;
}
