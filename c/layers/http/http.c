/* SPDX-License-Identifier: Apache-2.0 */
/* The layer itself: configuration, pools, and the callbacks of the connections. */
#include <stdlib.h>

#include "layers/http/http.h"

enum { FREE_BUFS_MAX = 256 };   /* pooled at most: 4.5 MiB; slow heads hold more only while they last */

/* --- pool --- */

struct http_buf *sl_http_buf_get(struct http_layer *h)
{
	struct http_buf *b = h->free_bufs;

	if (b) {
		h->free_bufs = b->next;
		h->nb_free_bufs--;
	} else {
		b = malloc(sizeof(*b));
		if (!b)
			return NULL;
	}
	b->pos = b->len = 0;
	return b;
}

void sl_http_buf_put(struct http_layer *h, struct http_buf **b)
{
	struct http_buf *old = *b;

	*b = NULL;
	if (!old)
		return;
	if (h->nb_free_bufs == FREE_BUFS_MAX) {
		free(old);
		return;
	}
	old->next = h->free_bufs;
	h->free_bufs = old;
	h->nb_free_bufs++;
}

/* --- connections --- */

static int front_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	struct sl_instance *inst = sl_flow_instance(f);
	struct http_layer *h = inst->layer_state;
	struct sl_flow_open open;
	struct http_conn *c;

	if (f->moved)
		return sl_http_take_over(h, f, msg, len);
	if (len < sizeof(open) || fin) {   /* nothing was asked, and nothing will be */
		inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_PROTOCOL;
	}
	/* draining is no reason to refuse: who sent this had not heard of it yet */
	if (h->nb_conns >= h->conf.max_connections)
		return -SL_ERROR_REFUSED;
	c = sl_http_conn_new(h);
	if (!c)
		return -SL_ERROR_REFUSED;
	memcpy(&open, msg, sizeof(open));
	c->tls = open.tls_version != 0;
	c->service = open.service;
	c->client_port = open.client_port;
	memcpy(c->client_addr, open.client_addr, sizeof(c->client_addr));
	c->front = f;
	c->last = inst->draining;
	f->user = c;
	sl_http_token_set(c, open.token);
	sl_trace_flow(f, SL_TRACE_IN, 0);
	sl_http_timer_set(c);
	return 0;
}

/* The connection of a front flow; NULL: it has none any more, or not yet (move.c). */
static struct http_conn *front_conn(const struct sl_flow *f)
{
	struct http_conn *c = f->user;

	return c && c->front == f ? c : NULL;
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct http_conn *c = front_conn(f);
	uint32_t taken = 0;

	if (!c)
		return len;
	c->in_data = true;
	while (taken < len && c->front == f) {
		uint32_t n = sl_http_input(c, p + taken, len - taken);

		taken += n;
		if (!n)
			break;
	}
	c->in_data = false;
	sl_flow_instance(f)->bytes_in += taken;
	if (c->front != f)
		return len;
	if (taken == len)
		sl_http_expect(c);
	if (c->front == f)
		sl_http_timer_set(c);
	return taken;
}

static void front_fin(struct sl_flow *f)
{
	struct http_conn *c = front_conn(f);

	if (!c)
		return;
	c->client_fin = true;
	switch (c->input) {
	case IN_HEAD:
		if (!c->head) {
			sl_http_conn_close(c);
			break;
		}
		/* fall through */
	case IN_BODY:   /* cut off in the middle */
		sl_http_error(c, 400);
		break;
	case IN_DISCARD:
		sl_http_conn_close(c);
		break;
	default:        /* an answer is due: request_done() looks at client_fin */
		break;
	}
}

static void front_writable(struct sl_flow *f)
{
	struct http_conn *c = front_conn(f);

	if (!c)
		return;
	sl_timer_cancel(&c->write_timer);
	if (!sl_http_flush(c))
		return;
	if (c->output == OUT_LAST)
		sl_http_request_done(c);
	else if (c->back)
		sl_flow_resume(c->back);
}

/* The layer before us is draining. */
static void front_drain(struct sl_flow *f)
{
	struct http_conn *c = f->user;

	if (c)
		sl_http_conn_drain(c);
}

static void front_over(struct sl_flow *f, enum sl_request_status status)
{
	struct http_conn *c = f->user;

	(void)status;
	if (c && c->heir == f)
		sl_http_heir_gone(c);
	else if (c)
		sl_http_conn_end(c);
}

/* --- layer --- */

static void conf_bound(struct sl_http_conf *conf)
{
	if (!conf->max_head_bytes || conf->max_head_bytes > HTTP_TEXT_MAX)
		conf->max_head_bytes = HTTP_TEXT_MAX;
	if (!conf->max_fields || conf->max_fields > SL_HTTP_FIELDS_MAX)
		conf->max_fields = SL_HTTP_FIELDS_MAX;
	if (!conf->max_target_bytes)
		conf->max_target_bytes = conf->max_head_bytes;
}

static int http_init(struct sl_instance *inst)
{
	uint32_t len;
	const void *item = sl_instance_conf(inst, SL_CONF_HTTP, 0, &len);
	struct http_layer *h;

	if (!item || len != sizeof(h->conf))
		return sl_instance_fail(inst, EINVAL, "http: the manager gave no configuration of %zu bytes",
					sizeof(h->conf));
	h = calloc(1, sizeof(*h));
	if (!h)
		return sl_instance_fail(inst, ENOMEM, "http: no memory");
	memcpy(&h->conf, item, sizeof(h->conf));
	conf_bound(&h->conf);
	h->inst = inst;
	h->date_s = -1;
	sl_list_init(&h->conns);
	sl_list_init(&h->free_conns);
	sl_list_init(&h->waiters);
	for (unsigned i = 0; i < HTTP_TOKEN_BUCKETS; i++)
		sl_list_init(&h->by_token[i]);
	sl_timer_init(&h->retry_timer, sl_http_retry_fire);
	sl_http_parser_init(&h->parser);
	inst->layer_state = h;
	return 0;
}

/* Each connection ends with its next answer; one that stays idle ends a little later, because closing it at once could
 * cross with a request that is on its way. */
static void http_drain(struct sl_instance *inst)
{
	struct http_layer *h = inst->layer_state;
	struct sl_list *node, *next;

	for (node = h->conns.next; node != &h->conns; node = next) {
		next = node->next;
		sl_http_conn_drain(sl_container_of(node, struct http_conn, node));
	}
}

static void conns_free(struct sl_list *head)
{
	while (!sl_list_empty(head)) {
		struct http_conn *c = sl_container_of(head->next, struct http_conn, node);

		sl_list_unlink(&c->node);
		free(c);
	}
}

/* The flows are the instance's to end: no callback comes any more. */
static void http_stop(struct sl_instance *inst)
{
	struct http_layer *h = inst->layer_state;

	if (!h)
		return;
	while (!sl_list_empty(&h->conns))
		sl_http_conn_free(sl_container_of(h->conns.next, struct http_conn, node));
	sl_timer_cancel(&h->retry_timer);
	conns_free(&h->free_conns);
	while (h->free_bufs) {
		struct http_buf *b = h->free_bufs;

		h->free_bufs = b->next;
		free(b);
	}
	free(h);
	inst->layer_state = NULL;
}

static const struct sl_flow_ops front_ops = {
	.open = front_open,
	.data = front_data,
	.fin = front_fin,
	.writable = front_writable,
	.over = front_over,
	.drain = front_drain,
	.orphaned = sl_http_orphaned,
};

const struct sl_layer sl_layer_http = {
	.name = "http",
	.id = SL_LAYER_HTTP,
	.front = &front_ops,
	.back = &sl_http_back_ops,
	.init = http_init,
	.drain = http_drain,
	.stop = http_stop,
};
