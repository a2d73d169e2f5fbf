/* SPDX-License-Identifier: Apache-2.0 */
/* The tls layer: TLS 1.2 and 1.3 by OpenSSL. Needs no capability, no file and no network once init() is through. */
#include <stdlib.h>
#include <sys/syscall.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include "layers/tls/tls.h"

static void tls_free(struct sl_tls *tls)
{
	sl_tls_contexts_free(tls);
	BIO_meth_free(tls->bio_method);
	EVP_CIPHER_free(tls->ticket_cipher);
	OPENSSL_cleanse(tls->keys, sizeof(tls->keys));
	free(tls);
}

static int tls_load(struct sl_tls *tls)
{
	unsigned char seed;
	int err;

	tls->bio_method = sl_tls_bio_method();
	/* seeded while nothing is forbidden yet */
	if (!tls->bio_method || RAND_bytes(&seed, sizeof(seed)) != 1)
		return sl_instance_fail(tls->inst, ENOMEM, "tls: OpenSSL does not start");
	err = sl_tls_tickets_load(tls);
	return err ? err : sl_tls_contexts_load(tls);
}

static int tls_init(struct sl_instance *inst)
{
	const struct sl_tls_conf *conf;
	struct sl_tls *tls;
	uint32_t len;
	int err;

	conf = sl_instance_conf(inst, SL_CONF_TLS, 0, &len);
	if (!conf || len != sizeof(*conf))
		return sl_instance_fail(inst, EINVAL, "tls: its configuration is missing");
	/* the machine's openssl.cnf has no say in what this service negotiates */
	if (!OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL))
		return sl_instance_fail(inst, ENOMEM, "tls: OpenSSL does not start");
	tls = calloc(1, sizeof(*tls));
	if (!tls)
		return sl_instance_fail(inst, ENOMEM, "tls: no memory");
	tls->inst = inst;
	tls->conf = *conf;
	sl_list_init(&tls->conns);
	err = tls_load(tls);
	if (err) {
		tls_free(tls);
		return err;
	}
	inst->layer_state = tls;
	return 0;
}

/* http closes the connections of a draining swarm where it can do so between two requests; here they just run out. */
static void tls_drain(struct sl_instance *inst)
{
	(void)inst;
}

static void tls_stop(struct sl_instance *inst)
{
	struct sl_tls *tls = inst->layer_state;

	if (!tls)
		return;
	while (!sl_list_empty(&tls->conns))
		sl_tls_conn_abort(sl_container_of(tls->conns.next, struct sl_tls_conn, node), SL_ERROR_PEER_GONE);
	tls_free(tls);
	inst->layer_state = NULL;
}

static const int tls_syscalls[] = { SYS_getrandom, SYS_getpid, -1 };   /* OpenSSL reseeds, and looks for a fork */

const struct sl_layer sl_layer_tls = {
	.name = "tls",
	.id = SL_LAYER_TLS,
	.front = &sl_tls_front,
	.back = &sl_tls_back,
	.init = tls_init,
	.drain = tls_drain,
	.stop = tls_stop,
	.syscalls = tls_syscalls,
};
