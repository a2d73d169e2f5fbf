/* SPDX-License-Identifier: Apache-2.0 */
/* OpenSSL's bytes come straight from the shared payload and go straight into a slot: no memory BIO in between. */
#include "layers/tls/tls.h"

static int wire_read(BIO *b, char *p, size_t len, size_t *done)
{
	struct sl_tls_wire *w = BIO_get_data(b);

	BIO_clear_retry_flags(b);
	len = sl_min(len, w->in_len);
	*done = len;
	if (!len) {
		/* never an end of file: conn.c judges the client's FIN itself */
		BIO_set_retry_read(b);
		return 0;
	}
	memcpy(p, w->in, len);
	w->in += len;
	w->in_len -= (uint32_t)len;
	w->unread += (uint32_t)len;
	w->taken += (uint32_t)len;
	return 1;
}

static void slot_commit(struct sl_tls_wire *w, uint32_t flags)
{
	sl_flow_commit(w->flow, &w->out, w->out_len, flags);
	w->sent += w->out_len;
	w->out.data = NULL;
}

static bool slot_reserve(struct sl_tls_wire *w, uint32_t want)
{
	w->out_cap = sl_flow_reserve(w->flow, sl_max(want, w->expect), &w->out);
	w->out_len = 0;
	if (!w->out_cap)
		w->out.data = NULL;
	return w->out_cap;
}

static int wire_write(BIO *b, const char *p, size_t len, size_t *done)
{
	struct sl_tls_wire *w = BIO_get_data(b);
	size_t pos = 0;

	BIO_clear_retry_flags(b);
	*done = len;
	if (!w->flow || w->flow->tx_fin)
		return 1;
	while (pos < len) {
		uint32_t n;

		if (!w->out.data && !slot_reserve(w, (uint32_t)(len - pos)))
			break;
		n = (uint32_t)sl_min(len - pos, w->out_cap - w->out_len);
		memcpy(w->out.data + w->out_len, p + pos, n);
		w->out_len += n;
		w->expect -= sl_min(n, w->expect);
		pos += n;
		if (w->out_len == w->out_cap)
			slot_commit(w, 0);
	}
	*done = pos;
	if (pos)
		return 1;
	BIO_set_retry_write(b);   /* writable() of the front flow follows */
	return 0;
}

static long wire_ctrl(BIO *b, int cmd, long num, void *ptr)
{
	(void)b, (void)num, (void)ptr;
	return cmd == BIO_CTRL_FLUSH;   /* the real flush is at the end of the callback */
}

static int wire_create(BIO *b)
{
	BIO_set_init(b, 1);
	return 1;
}

BIO_METHOD *sl_tls_bio_method(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "swarmline flow");

	if (m && BIO_meth_set_read_ex(m, wire_read) && BIO_meth_set_write_ex(m, wire_write) &&
	    BIO_meth_set_ctrl(m, wire_ctrl) && BIO_meth_set_create(m, wire_create))
		return m;
	BIO_meth_free(m);
	return NULL;
}

BIO *sl_tls_bio_new(const BIO_METHOD *method, struct sl_tls_wire *wire)
{
	BIO *b = BIO_new(method);

	if (b)
		BIO_set_data(b, wire);
	return b;
}

void sl_tls_wire_flush(struct sl_tls_wire *w, bool fin)
{
	w->expect = 0;
	if (!w->flow)
		return;
	if (w->out.data)
		slot_commit(w, fin ? SL_F_FIN : 0);
	else if (fin)
		sl_flow_fin(w->flow);
}

void sl_tls_wire_drop(struct sl_tls_wire *w)
{
	if (w->out.data)
		sl_buf_free(w->flow->edge, &w->out);
	w->out.data = NULL;
	w->flow = NULL;
	w->in = NULL;
	w->in_len = 0;
}
