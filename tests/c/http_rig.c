/* SPDX-License-Identifier: Apache-2.0 */
#include "http_rig.h"

struct sl_http_conf conf_default(void)
{
	return (struct sl_http_conf){
		.max_body_bytes = 1000000, .max_head_bytes = 4096, .max_fields = 20, .max_target_bytes = 1024,
		.head_timeout_ms = 1000, .body_timeout_ms = 2000, .keepalive_timeout_ms = 5000,
		.max_requests = 100, .max_connections = 10,
	};
}

void rig_start(struct rig *r, struct sl_http_conf conf)
{
	memset(r, 0, sizeof(*r));
	fake_init(&r->k, &sl_layer_http);
	r->conf = conf;
	fake_conf(&r->k, SL_CONF_HTTP, &r->conf, sizeof(r->conf));
	assert_int_equal(fake_start(&r->k), 0);
	r->open = (struct sl_flow_open){
		.service = 3, .client_port = 0x1234, .client_addr = {[15] = 9}, .tls_version = 4,
	};
	r->c = fake_open(&r->k, &r->open, sizeof(r->open), 0, NULL);
	assert_non_null(r->c);
}

void rig_default(struct rig *r)
{
	rig_start(r, conf_default());
}

struct fake_flow *rig_connect(struct rig *r)
{
	return fake_open(&r->k, &r->open, sizeof(r->open), 0, NULL);
}

void say(struct rig *r, const char *text)
{
	fake_send(r->c, text, strlen(text), 0);
}

int status_of(const struct fake_flow *c)
{
	return c->out_len > 12 && !memcmp(c->out, "HTTP/1.1 ", 9) ? atoi((const char *)c->out + 9) : 0;
}

bool has(const struct fake_flow *c, const char *text)
{
	return strstr((const char *)c->out, text) != NULL;
}

const char *body_of(const struct fake_flow *c)
{
	const char *end = strstr((const char *)c->out, "\r\n\r\n");

	assert_non_null(end);
	return end + 4;
}

struct fake_flow *app(struct rig *r)
{
	return fake_last_opened(&r->k);
}

const struct sl_http_request *request(struct rig *r)
{
	assert_non_null(app(r));
	return (const void *)app(r)->msg;
}

bool text_at(const void *msg, unsigned off, unsigned len, const char *text)
{
	return strlen(text) == len && !memcmp((const char *)msg + off, text, len);
}

bool app_has(struct rig *r, const char *name, const char *value)
{
	const struct sl_http_request *q = request(r);
	const struct sl_http_field *f = (const void *)(q + 1);

	for (unsigned i = 0; i < q->nb_fields; i++) {
		if (text_at(q, f[i].name_off, f[i].name_len, name))
			return !value || text_at(q, f[i].value_off, f[i].value_len, value);
	}
	return false;
}

uint32_t message(uint8_t *out, unsigned status, uint64_t body_len, const char *fields, const void *body, uint32_t len)
{
	struct sl_http_response m = {.magic = SL_HTTP_MAGIC, .status = (__u16)status, .body_len = body_len};
	struct sl_http_field f[16];
	uint32_t at;

	for (const char *p = fields; *p; p = strchr(p, '\n') + 1)
		m.nb_fields++;
	at = sizeof(m) + m.nb_fields * (uint32_t)sizeof(f[0]);
	for (unsigned i = 0; i < m.nb_fields; i++) {
		const char *colon = strstr(fields, ": "), *end = strchr(fields, '\n');

		f[i].name_off = (__u16)at;
		f[i].name_len = (__u16)(colon - fields);
		f[i].value_off = (__u16)(at + (colon + 2 - fields));
		f[i].value_len = (__u16)(end - colon - 2);
		memcpy(out + at, fields, (size_t)(end - fields));
		at += (uint32_t)(end - fields);
		fields = end + 1;
	}
	m.head_len = (__u16)at;
	memcpy(out, &m, sizeof(m));
	memcpy(out + sizeof(m), f, m.nb_fields * sizeof(f[0]));
	memcpy(out + at, body, len);
	return at + len;
}

void answer(struct rig *r, unsigned status, const char *fields, const char *body)
{
	uint8_t m[4096];
	uint32_t len = message(m, status, strlen(body), fields, body, (uint32_t)strlen(body));

	fake_send(app(r), m, len, SL_F_FIN);
}

void rig_pump(struct fake_flow *ff, uint32_t step)
{
	for (unsigned i = 0; i < 400000 && ff->flow.blocked; i++)
		fake_credit(ff, step);
}
