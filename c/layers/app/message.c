/* SPDX-License-Identifier: Apache-2.0 */
/* The two messages of abi/http.h: the request is read and checked, the head of the answer is put together. */
#include <stdio.h>

#include "layers/app/app.h"

static const struct sl_app_text field_names[SL_APP_FIELD_NB] = {
	[SL_APP_CONTENT_TYPE] = { "content-type", 12 },
	[SL_APP_IF_MATCH] = { "if-match", 8 },
	[SL_APP_IF_MODIFIED_SINCE] = { "if-modified-since", 17 },
	[SL_APP_IF_NONE_MATCH] = { "if-none-match", 13 },
	[SL_APP_IF_RANGE] = { "if-range", 8 },
	[SL_APP_IF_UNMODIFIED_SINCE] = { "if-unmodified-since", 19 },
	[SL_APP_RANGE] = { "range", 5 },
};

static int field_find(struct sl_app_text name)
{
	for (int i = 0; i < SL_APP_FIELD_NB; i++) {
		if (name.len == field_names[i].len && !memcmp(name.p, field_names[i].p, name.len))
			return i;
	}
	return -1;
}

static bool text_get(const struct sl_app_message *m, uint16_t off, uint16_t len, struct sl_app_text *ret)
{
	if ((uint32_t)off + len > m->r.head_len)
		return false;
	ret->p = (const char *)m->base + off;
	ret->len = len;
	return true;
}

static bool line_get(const struct sl_app_message *m, unsigned n, struct sl_app_text *name, struct sl_app_text *value)
{
	struct sl_http_field f;

	memcpy(&f, m->base + sizeof(m->r) + n * sizeof(f), sizeof(f));
	return text_get(m, f.name_off, f.name_len, name) && text_get(m, f.value_off, f.value_len, value);
}

int sl_app_message_read(struct sl_app_message *m, const void *msg, uint32_t len)
{
	struct sl_app_text name, value;

	if (len < sizeof(m->r))
		return -EBADMSG;
	memset(m, 0, sizeof(*m));
	memcpy(&m->r, msg, sizeof(m->r));
	m->base = msg;
	/* a body comes as DATA: nothing may stand behind the head */
	if (m->r.magic != SL_HTTP_MAGIC || m->r.head_len != len || m->r.nb_fields > SL_HTTP_FIELDS_MAX ||
	    sizeof(m->r) + m->r.nb_fields * sizeof(struct sl_http_field) > len)
		return -EBADMSG;
	if (!text_get(m, m->r.path_off, m->r.path_len, &m->path) ||
	    !text_get(m, m->r.query_off, m->r.query_len, &m->query) ||
	    !text_get(m, m->r.method_off, m->r.method_len, &value) ||
	    !text_get(m, m->r.authority_off, m->r.authority_len, &value))
		return -EBADMSG;
	for (unsigned i = 0; i < m->r.nb_fields; i++) {
		int k;

		if (!line_get(m, i, &name, &value))
			return -EBADMSG;
		k = field_find(name);
		if (k < 0)
			continue;
		if (!m->nb_lines[k])
			m->field[k] = value;
		m->nb_lines[k] += m->nb_lines[k] < 255;
	}
	return 0;
}

bool sl_app_field_any(const struct sl_app_message *m, enum sl_app_field name,
		      bool (*each)(struct sl_app_text line, const void *arg), const void *arg)
{
	struct sl_app_text n, value;

	if (m->nb_lines[name] < 2)
		return m->nb_lines[name] && each(m->field[name], arg);
	for (unsigned i = 0; i < m->r.nb_fields; i++) {
		if (line_get(m, i, &n, &value) && field_find(n) == (int)name && each(value, arg))
			return true;
	}
	return false;
}

void sl_app_head_init(struct sl_app_head *h, uint16_t status, uint64_t body_len)
{
	memset(&h->r, 0, sizeof(h->r));
	h->r.magic = SL_HTTP_MAGIC;
	h->r.status = status;
	h->r.body_len = body_len;
	h->text_len = 0;
	h->full = false;
}

static uint16_t text_add(struct sl_app_head *h, const char *p, size_t len)
{
	uint32_t off = h->text_len;

	if (len > sizeof(h->text) - off) {
		h->full = true;
		return 0;
	}
	memcpy(h->text + off, p, len);
	h->text_len += (uint32_t)len;
	return (uint16_t)off;
}

void sl_app_head_add(struct sl_app_head *h, const char *name, const char *value, size_t len)
{
	struct sl_http_field *f = &h->fields[h->r.nb_fields];

	if (h->r.nb_fields == sl_nb(h->fields)) {
		h->full = true;
		return;
	}
	f->name_len = (uint16_t)strlen(name);
	f->name_off = text_add(h, name, f->name_len);
	f->value_len = (uint16_t)len;
	f->value_off = text_add(h, value, len);
	h->r.nb_fields++;
}

uint32_t sl_app_head_write(struct sl_app_head *h, uint8_t *out, uint32_t cap)
{
	uint32_t fields_len = h->r.nb_fields * (uint32_t)sizeof(h->fields[0]);
	uint32_t start = (uint32_t)sizeof(h->r) + fields_len;
	uint32_t len = (start + h->text_len + 7) & ~7u;

	if (h->full || len > cap)
		return 0;
	for (unsigned i = 0; i < h->r.nb_fields; i++) {
		h->fields[i].name_off = (uint16_t)(h->fields[i].name_off + start);
		h->fields[i].value_off = (uint16_t)(h->fields[i].value_off + start);
	}
	h->r.head_len = (uint16_t)len;
	memcpy(out, &h->r, sizeof(h->r));
	memcpy(out + sizeof(h->r), h->fields, fields_len);
	memcpy(out + start, h->text, h->text_len);
	memset(out + start + h->text_len, 0, len - start - h->text_len);
	return len;
}

static const char *status_name(uint16_t status)
{
	static const struct {
		uint16_t status;
		const char *name;
	} names[] = {
		{ 301, "Moved Permanently" },
		{ 400, "Bad Request" },
		{ 403, "Forbidden" },
		{ 404, "Not Found" },
		{ 405, "Method Not Allowed" },
		{ 412, "Precondition Failed" },
		{ 414, "URI Too Long" },
		{ 416, "Range Not Satisfiable" },
		{ 503, "Service Unavailable" },
	};

	for (unsigned i = 0; i < sl_nb(names); i++) {
		if (names[i].status == status)
			return names[i].name;
	}
	return "Internal Server Error";
}

void sl_app_answer(struct sl_app_request *r, const struct sl_app_message *m, uint16_t status, const char *name,
		   const char *value)
{
	static const char plain[] = "text/plain; charset=utf-8";
	struct sl_app_head h;
	char text[64];
	int len = snprintf(text, sizeof(text), "%u %s\n", status, status_name(status));

	sl_app_head_init(&h, status, (uint64_t)len);
	sl_app_head_add(&h, "content-type", plain, sizeof(plain) - 1);
	if (name)
		sl_app_head_add(&h, name, value, strlen(value));
	r->held_len = sl_app_head_write(&h, r->held, SL_APP_HEAD_MAX - (uint32_t)sizeof(text));
	if (!r->held_len) {
		sl_app_abort(r, SL_ERROR);
		return;
	}
	if (m->r.method != SL_HTTP_HEAD) {
		memcpy(r->held + r->held_len, text, (size_t)len);
		r->held_len += (uint32_t)len;
	}
	sl_app_push(r);
}
