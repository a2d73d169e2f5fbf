/* SPDX-License-Identifier: Apache-2.0 */
/* The tls layer: TLS 1.2 and 1.3 by OpenSSL. Needs no capability, no file and no network once load() is through. */
#include <stdlib.h>
#include <time.h>
#include <sys/syscall.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include "layers/tls/tls.h"

/* --- callbacks of the flows: each enters the connection, moves what can be moved, and leaves --- */

static int front_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	struct sl_instance *inst = sl_flow_instance(f);
	struct sl_tls *tls = inst->layer_state;
	const struct sl_flow_open *open = msg;
	struct sl_tls_conn *c;

	if (f->moved)
		return sl_tls_takeover(tls, f, msg, len);
	if (len != sizeof(*open) || !sl_instance_next_edge(inst, open->service)) {
		inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_PROTOCOL;
	}
	if (fin)   /* left before saying anything */
		return -SL_ERROR_CLIENT;
	c = tls->nb_conns >= tls->conf.max_connections ? NULL : sl_tls_conn_new(tls, f, open);
	if (!c)
		return -SL_ERROR_REFUSED;
	f->user = c;
	inst->requests++;
	c->deadline_ms = UINT64_MAX;
	if (tls->conf.handshake_timeout_ms) {
		c->deadline_ms = inst->wheel.now_ms + tls->conf.handshake_timeout_ms;
		sl_timer_arm(&inst->wheel, &c->timer, tls->conf.handshake_timeout_ms);
	}
	sl_trace_flow(f, SL_TRACE_IN, 0);
	return 0;
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct sl_tls_conn *c = f->user;
	uint32_t rest;

	if (c->state == SL_TLS_CLOSED || c->rx_closed)
		return len;
	if (c->state == SL_TLS_RESUMING)
		return 0;
	sl_tls_conn_enter(c);
	if (c->stream) {
		len = c->state == SL_TLS_RUNNING ? sl_tls_stream_input(c, p, len) : 0;
		sl_tls_conn_leave(c);
		return len;
	}
	c->wire.in = p;
	c->wire.in_len = len;
	if (c->state == SL_TLS_HANDSHAKE)
		sl_tls_conn_handshake(c);
	if (c->stream && c->state == SL_TLS_RUNNING) {   /* what came behind the handshake */
		uint32_t n = sl_tls_stream_input(c, c->wire.in, c->wire.in_len);

		c->wire.in_len -= sl_min(n, c->wire.in_len);
	} else if (!c->stream) {
		sl_tls_conn_read(c);
	}
	rest = c->state == SL_TLS_CLOSED || c->rx_closed ? 0 : c->wire.in_len;
	c->wire.in = NULL;
	c->wire.in_len = 0;
	sl_tls_conn_leave(c);
	return len - rest;
}

static void front_fin(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	c->fin_early = c->state == SL_TLS_RESUMING;
	if (c->fin_early || c->state == SL_TLS_CLOSED || (c->state == SL_TLS_RUNNING && c->rx_closed))
		return;
	sl_tls_conn_enter(c);
	if (f->tx_fin) {
		/* http had its say and the client its close_notify; many clients just leave then */
		c->state = SL_TLS_CLOSED;
		sl_tls_back_reset(c, SL_ERROR_CLIENT);
	} else {
		/* the alert is a courtesy: the client may still listen */
		if (c->stream) {
			sl_tls_stream_fail(c, SL_ALERT_CLOSE_NOTIFY);
		} else {
			if (c->ssl)
				SSL_shutdown(c->ssl);
			sl_tls_conn_fail(c);
		}
	}
	sl_tls_conn_leave(c);
}

static void front_writable(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	if (c->state == SL_TLS_HANDSHAKE)
		sl_tls_conn_handshake(c);
	if (c->tx_closing)
		sl_tls_conn_shutdown(c);
	if (c->stream)
		sl_tls_stream_serve(c);
	else
		sl_tls_conn_read(c);   /* it may have wanted to write: an answer to KeyUpdate */
	if (c->back)
		sl_flow_resume(c->back);
	if (c->wire.flow)
		sl_flow_resume(c->wire.flow);
	sl_tls_conn_leave(c);
}

static void front_over(struct sl_flow *f, enum sl_request_status status)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	c->state = SL_TLS_CLOSED;
	sl_trace_flow(f, SL_TRACE_DONE, 0);
	sl_tls_wire_drop(&c->wire);
	/* both FINs on both flows: the back flow's own over() is on its way */
	if (c->back && !(c->back->tx_fin && c->back->rx_fin))
		sl_tls_back_reset(c, status == SL_COMPLETED ? SL_ERROR_CLIENT : status);
	sl_tls_conn_leave(c);
}

static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct sl_tls_conn *c = f->user;
	uint64_t before = c->wire.sent;
	uint32_t done = 0;
	size_t n;
	int r;

	if (!c->answered)
		sl_trace_flow(f, SL_TRACE_BACK, 0);
	sl_tls_conn_enter(c);
	if (c->stream) {
		done = sl_tls_stream_output(c, p, len);
		goto out;
	}
	c->wire.expect = len + (len / SL_TLS_PIECE + 1) * SL_TLS_RECORD_EXTRA;
	while (done < len) {
		/* copied into OpenSSL's buffer before it is encrypted, so the sender can not change it underneath */
		r = SSL_write_ex(c->ssl, p + done, len - done, &n);
		if (r != 1) {
			/* no room: the begun record stays in OpenSSL, and the same bytes are shown again */
			if (SSL_get_error(c->ssl, r) == SSL_ERROR_WANT_WRITE)
				break;
			sl_tls_conn_fail(c);
			done = len;
			break;
		}
		done += (uint32_t)n;
		c->tls->inst->bytes_out += n;
	}
	sl_tls_wire_flush(&c->wire, false);
out:
	if (!c->answered && c->wire.flow && c->wire.sent != before) {
		c->answered = true;
		sl_trace_flow(c->wire.flow, SL_TRACE_OUT, 0);
	}
	sl_tls_conn_leave(c);
	return done;
}

static void back_fin(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	c->tx_closing = true;
	sl_tls_conn_shutdown(c);
	sl_tls_conn_leave(c);
}

static void back_writable(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	if (!c->stream)
		sl_tls_conn_read(c);   /* what OpenSSL still has */
	if (c->wire.flow)
		sl_flow_resume(c->wire.flow);
	sl_tls_conn_leave(c);
}

static void back_over(struct sl_flow *f, enum sl_request_status status)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	c->back = NULL;
	if (status != SL_COMPLETED && c->wire.flow && !c->wire.flow->tx_fin)
		sl_tls_conn_reset(c, status);
	else if (c->wire.flow && c->wire.flow->tx_fin)
		c->state = SL_TLS_CLOSED;
	sl_tls_conn_leave(c);
}

static void back_resumed(struct sl_flow *f, const struct sl_flow_marks *m)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	sl_tls_takeover_resumed(c, m);
	sl_tls_conn_leave(c);
}

static void front_hand_over(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	sl_tls_conn_enter(c);
	sl_tls_hand_over(c);
	sl_tls_conn_leave(c);
}

/* The wish that the connection ends soon: only http knows a polite moment for it. */
static void front_drain(struct sl_flow *f)
{
	struct sl_tls_conn *c = f->user;

	c->draining = true;
	if (c->back)
		sl_flow_drain(c->back);
}

static const struct sl_flow_ops tls_front = {
	.open = front_open,
	.data = front_data,
	.fin = front_fin,
	.writable = front_writable,
	.over = front_over,
	.drain = front_drain,
	.hand_over = front_hand_over,
};

static const struct sl_flow_ops tls_back = {
	.data = back_data,
	.fin = back_fin,
	.writable = back_writable,
	.over = back_over,
	.resumed = back_resumed,
};

/* --- the layer --- */

static void tls_free(struct sl_tls *tls)
{
	sl_tls_contexts_free(tls);
	BIO_meth_free(tls->bio_method);
	EVP_CIPHER_free(tls->ticket_cipher);
	sl_crypto_free(&tls->crypto);
	OPENSSL_cleanse(tls, sizeof(*tls));
	free(tls);
}

static int tls_fill(struct sl_tls *tls)
{
	struct sl_aead *aead = sl_tls_aead_choose(tls);
	const struct sl_pool_key *pool;
	uint32_t len;
	int err;

	if (!aead)
		return sl_instance_fail(tls->inst, ENOMEM, "tls: no memory");
	tls->bio_method = sl_tls_bio_method();
	if (!tls->bio_method || sl_crypto_init(&tls->crypto, aead))
		return sl_instance_fail(tls->inst, ENOMEM, "tls: OpenSSL does not start");
	pool = sl_instance_conf(tls->inst, SL_CONF_TLS_POOL, 0, &len);
	if (pool && len == sizeof(*pool)) {
		tls->pool = *pool;
		tls->has_pool = true;
		sl_instance_conf_wipe(tls->inst, pool, len);
	}
	err = sl_tls_tickets_load(tls);
	return err ? err : sl_tls_contexts_load(tls);
}

/* While nothing is forbidden yet: libraries are loaded; OpenSSL seeds itself, finds its algorithms, and keeps them. */
static int tls_load(struct sl_instance *inst)
{
	unsigned char seed;
	SSL_CTX *ctx;

	(void)inst;
	sl_aead_multi_load();
	tzset();   /* or the first certificate's date does it, and opens a file */
	/* the machine's openssl.cnf has no say in what this service negotiates */
	if (!OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL) || RAND_bytes(&seed, sizeof(seed)) != 1)
		return -ENOMEM;
	ctx = SSL_CTX_new(TLS_server_method());
	SSL_CTX_free(ctx);
	return ctx ? 0 : -ENOMEM;
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
	tls = calloc(1, sizeof(*tls));
	if (!tls)
		return sl_instance_fail(inst, ENOMEM, "tls: no memory");
	tls->inst = inst;
	tls->conf = *conf;
	sl_list_init(&tls->conns);
	sl_list_init(&tls->acks);
	sl_timer_init(&tls->ack_timer, sl_tls_acks_fire);
	sl_timer_init(&tls->relief_timer, sl_tls_relief_fire);
	sl_timer_init(&tls->speed_timer, sl_tls_speed_fire);
	err = tls_fill(tls);
	if (err) {
		tls_free(tls);
		return err;
	}
	inst->layer_state = tls;
	sl_tls_aead_watch(tls);
	return 0;
}

static void tls_drain(struct sl_instance *inst)
{
	sl_tls_relieve(inst->layer_state);
}

static void tls_stop(struct sl_instance *inst)
{
	struct sl_tls *tls = inst->layer_state;

	if (!tls)
		return;
	while (!sl_list_empty(&tls->conns))
		sl_tls_conn_abort(sl_container_of(tls->conns.next, struct sl_tls_conn, node), SL_ERROR_PEER_GONE);
	sl_timer_cancel(&tls->ack_timer);
	sl_timer_cancel(&tls->relief_timer);
	sl_timer_cancel(&tls->speed_timer);
	tls_free(tls);
	inst->layer_state = NULL;
}

static const int tls_syscalls[] = { SYS_getrandom, SYS_getpid, -1 };   /* OpenSSL reseeds, and looks for a fork */

const struct sl_layer sl_layer_tls = {
	.name = "tls",
	.id = SL_LAYER_TLS,
	.front = &tls_front,
	.back = &tls_back,
	.load = tls_load,
	.rehearse = sl_tls_rehearse,
	.init = tls_init,
	.early = true,
	.drain = tls_drain,
	.moves = true,
	.stop = tls_stop,
	.syscalls = tls_syscalls,
};
