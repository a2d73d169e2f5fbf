/* SPDX-License-Identifier: Apache-2.0 */
/* A connection outlives the tls instance in front of it (layers/tls/move.h): its flow is kept until another instance comes
 * with the token that the first one gave us. What the two say lies in two rings, so it may come in any order: even the
 * connection's OPEN may be taken after the claim to it. Then a struct without a front flow holds its place. */
#include <stdlib.h>

#include "layers/http/http.h"

static struct sl_list *bucket(struct http_layer *h, const uint8_t *token)
{
	return &h->by_token[(token[0] | token[1] << 8) % HTTP_TOKEN_BUCKETS];
}

void sl_http_token_drop(struct http_conn *c)
{
	struct sl_flow *heir = c->heir;

	sl_list_unlink(&c->token_node);
	sl_timer_cancel(&c->orphan_timer);
	c->heir = NULL;
	if (heir) {
		heir->user = NULL;
		sl_flow_reset(heir, SL_ERROR_PEER_GONE);
	}
}

/* No early end of the comparison: a token is not to be found out byte by byte. */
static bool token_equal(const uint8_t *a, const uint8_t *b)
{
	uint8_t odd = 0;

	for (unsigned i = 0; i < SL_TOKEN_LEN; i++)
		odd |= a[i] ^ b[i];
	return !odd;
}

/* The flow's that is kept, or to come. */
static uint64_t id_of(const struct http_conn *c)
{
	const struct sl_flow *f = c->front ? c->front : c->heir;

	return f ? f->request_id : 0;
}

static struct http_conn *conn_find(struct http_layer *h, const uint8_t *token, uint64_t request_id)
{
	struct sl_list *head = bucket(h, token);

	for (struct sl_list *node = head->next; node != head; node = node->next) {
		struct http_conn *c = sl_container_of(node, struct http_conn, token_node);

		if (id_of(c) == request_id && token_equal(c->token, token))
			return c;
	}
	return NULL;
}

static bool is_token(const uint8_t token[SL_TOKEN_LEN])
{
	static const uint8_t none[SL_TOKEN_LEN];

	return memcmp(token, none, sizeof(none));
}

static void token_take(struct http_conn *c, const uint8_t token[SL_TOKEN_LEN])
{
	memcpy(c->token, token, sizeof(c->token));
	sl_list_append(bucket(c->http, token), &c->token_node);
}

/* NULL: no memory, or too many. */
static struct http_conn *place_hold(struct http_layer *h, const uint8_t token[SL_TOKEN_LEN])
{
	struct http_conn *c = h->nb_conns < h->conf.max_connections ? sl_http_conn_new(h) : NULL;

	if (c)
		token_take(c, token);
	return c;
}

static void heir_wait(struct http_conn *c)
{
	sl_timer_arm(&c->http->inst->wheel, &c->orphan_timer, c->front ? HTTP_ORPHAN_MS : HTTP_EARLY_MS);
}

void sl_http_token_set(struct http_conn *c, const uint8_t token[SL_TOKEN_LEN])
{
	struct http_conn *held;

	if (!is_token(token))
		return;
	held = conn_find(c->http, token, c->front->request_id);
	token_take(c, token);
	sl_flow_keep(c->front, HTTP_RECORD_MAX);
	if (!held || held->front)
		return;
	c->last |= held->last;
	c->heir = held->heir;
	c->heir->user = c;
	held->heir = NULL;
	sl_http_conn_free(held);
	heir_wait(c);
}

void sl_http_heir_gone(struct http_conn *c)
{
	c->heir = NULL;
	if (!c->front)
		sl_http_conn_free(c);
}

static void adopt(struct http_conn *c)
{
	struct sl_flow *heir = c->heir;

	c->heir = NULL;
	heir->user = NULL;
	sl_timer_cancel(&c->orphan_timer);
	sl_flow_adopt(c->front, heir);
	c->orphan = false;
}

int sl_http_take_over(struct http_layer *h, struct sl_flow *heir, const void *token, uint32_t len)
{
	struct sl_flow *former;
	struct http_conn *c;

	if (len != SL_TOKEN_LEN || !is_token(token)) {
		h->inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_STALE;
	}
	c = conn_find(h, token, heir->request_id);
	if (!c)
		c = place_hold(h, token);
	if (!c)
		return -SL_ERROR_REFUSED;
	former = c->heir;   /* it died before it got anywhere */
	if (former) {
		former->user = NULL;
		sl_flow_reset(former, SL_ERROR_STALE);
	}
	c->heir = heir;
	heir->user = c;
	if (c->orphan)
		adopt(c);
	else   /* what the other one said is still on its way to us, or that claim is a lie */
		heir_wait(c);
	return 0;
}

bool sl_http_orphaned(struct sl_flow *f)
{
	struct http_conn *c = f->user;

	if (!c || c->front != f || sl_list_empty(&c->token_node))
		return false;
	c->orphan = true;
	if (c->heir)
		adopt(c);
	else
		sl_timer_arm(&c->http->inst->wheel, &c->orphan_timer, HTTP_ORPHAN_MS);
	return true;
}

void sl_http_orphan_fire(struct sl_timer *t)
{
	struct http_conn *c = sl_container_of(t, struct http_conn, orphan_timer);
	struct sl_flow *heir = c->heir;

	if (c->orphan) {
		sl_http_conn_reset(c, SL_ERROR_PEER_GONE);
	} else if (heir) {
		c->http->inst->counters[SL_CNT_BAD_MESSAGE] += !c->front;
		heir->user = NULL;
		sl_flow_reset(heir, SL_ERROR_STALE);
		sl_http_heir_gone(c);
	}
}
