/* SPDX-License-Identifier: Apache-2.0 */
/* A connection outlives the tls instance in front of it (layers/tls/move.h): its flow is kept until another instance comes
 * with the token that the first one gave us. The two may come in either order. */
#include <stdlib.h>

#include "layers/http/http.h"

static struct sl_list *bucket(struct http_layer *h, const uint8_t *token)
{
	return &h->by_token[(token[0] | token[1] << 8) % HTTP_TOKEN_BUCKETS];
}

void sl_http_token_set(struct http_conn *c, const uint8_t token[SL_TOKEN_LEN])
{
	static const uint8_t none[SL_TOKEN_LEN];

	if (!memcmp(token, none, sizeof(none)))
		return;
	memcpy(c->token, token, sizeof(c->token));
	sl_list_append(bucket(c->http, token), &c->token_node);
	sl_flow_keep(c->front, HTTP_RECORD_MAX);
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

static struct http_conn *conn_find(struct http_layer *h, const uint8_t *token, uint64_t request_id)
{
	struct sl_list *head = bucket(h, token);

	for (struct sl_list *node = head->next; node != head; node = node->next) {
		struct http_conn *c = sl_container_of(node, struct http_conn, token_node);

		if (c->front && c->front->request_id == request_id && token_equal(c->token, token))
			return c;
	}
	return NULL;
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
	struct http_conn *c = len == SL_TOKEN_LEN ? conn_find(h, token, heir->request_id) : NULL;
	struct sl_flow *former;

	if (!c) {
		h->inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_STALE;
	}
	former = c->heir;   /* it died before it got anywhere */
	if (former) {
		former->user = NULL;
		sl_flow_reset(former, SL_ERROR_STALE);
	}
	c->heir = heir;
	heir->user = c;
	if (c->orphan)
		adopt(c);
	else   /* the other one's end is still on its way to us, or that claim is a lie */
		sl_timer_arm(&h->inst->wheel, &c->orphan_timer, HTTP_ORPHAN_MS);
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
		c->heir = NULL;
		heir->user = NULL;
		sl_flow_reset(heir, SL_ERROR_STALE);
	}
}
