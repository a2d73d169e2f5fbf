/* SPDX-License-Identifier: Apache-2.0 */
/* /echo: the body comes back as it came, while it comes. */
#include "layers/app/app.h"

enum { TYPE_MAX = 200 };

/* A field value as it may be sent again (RFC 9110 section 5.5, without obs-text) */
static bool is_sendable(struct sl_app_text t)
{
	for (uint32_t i = 0; i < t.len; i++) {
		if ((t.p[i] < ' ' || t.p[i] > '~') && t.p[i] != '\t')
			return false;
	}
	return t.len && t.len <= TYPE_MAX;
}

void sl_app_echo(struct sl_app_request *r, const struct sl_app_message *m)
{
	struct sl_app_text type = m->field[SL_APP_CONTENT_TYPE];
	struct sl_app_head h;

	if (m->r.method != SL_HTTP_POST && m->r.method != SL_HTTP_PUT) {
		sl_app_answer(r, m, 405, "allow", "POST, PUT");
		return;
	}
	if (m->nb_lines[SL_APP_CONTENT_TYPE] != 1 || !is_sendable(type))
		type = (struct sl_app_text){ "application/octet-stream", 24 };
	sl_app_head_init(&h, 200, r->body_len);
	sl_app_head_add(&h, "content-type", type.p, type.len);
	r->held_len = sl_app_head_write(&h, r->held, SL_APP_HEAD_MAX);
	r->echo = true;
	r->last = !r->body_len;
	/* the head waits for the first byte: an answer that came before the body would make http forget about 100
	 * (Continue) */
	if (r->last)
		sl_app_push(r);
}
