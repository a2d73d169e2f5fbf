/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the layer tls share: certificates, the layer over the fake of the flow library, OpenSSL as the
 * client. */
#ifndef SL_TLS_RIG_H
#define SL_TLS_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <openssl/err.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>

#include "fake_flow.h"

extern const struct sl_layer sl_layer_tls;

struct pair {
	char *cert, *key;        /* PEM */
	long cert_len, key_len;
};

/* default; *.example.org and example.org; www.example.org; {both,other}.example.net with an EC key; the same with an
 * RSA key */
enum { NB_PAIRS = 5 };
extern struct pair pairs[NB_PAIRS];
int pairs_make(void **state);   /* set-up and tear-down of a group */
int pairs_free(void **state);
/* A self-signed certificate. Takes key over. san: as in openssl.cnf, or NULL. */
struct pair pair_make(EVP_PKEY *key, const char *cn, const char *san, const char *passphrase);
void pair_free(struct pair *p);

struct world {
	struct fake k;
	struct sl_tls_conf conf;
	struct sl_ticket_key keys[3];
	unsigned nb_keys;
	struct sl_pool_key pool; /* all zero: no connection moves */
};

void world_conf(struct world *w);   /* zeroes *w; defaults with one ticket key */
int world_start(struct world *w, const struct pair *p, unsigned nb);
void world_stop(struct world *w);
int world_open(void **state);       /* set-up and tear-down of a test with one certificate and defaults */
int world_close(void **state);

struct client {
	struct world *w;
	SSL_CTX *ctx;
	SSL *ssl;
	BIO *in, *out;
	struct fake_flow *front, *back;
	size_t piece;            /* bytes given to the layer at once */
	SSL_SESSION *session;    /* the latest ticket */
	int alert;               /* last alert that came, -1: none */
};

/* What tcp tells about a connection, with rubbish where tls has to fill in. */
struct sl_flow_open open_payload(void);
void client_open(struct client *c, struct world *w, int version);   /* version 0: any */
void client_close(struct client *c);
void pump(struct client *c);        /* moves ciphertext both ways until nothing moves any more */
void client_connect(struct client *c);
size_t client_read(struct client *c, char *out, size_t cap);        /* what has come; tickets too */
void client_write(struct client *c, const char *text);
void expect_back(struct client *c, const char *text);               /* http got this, and nothing else */
void expect_client(struct client *c, const char *text);
void talk(struct client *c);        /* a question and an answer */

#define T(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

#endif
