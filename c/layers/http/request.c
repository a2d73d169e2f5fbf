/* SPDX-License-Identifier: Apache-2.0 */
/* Head of a request -> struct sl_http_request.
 *
 * The head is whole and private, so llhttp sees it in one call and its spans can be used where they lie. llhttp 8.1
 * is lenient even without lenient flags, more so in the loose mode that Debian builds. What closes each gap:
 *
 *   llhttp takes                                          refused by
 *   bare LF, CR without LF, NUL, folded lines             sl_http_line_check, on each line before llhttp sees it
 *   several SP in the request line, HTTP/0.9, fragments,  sl_http_line_check, on the first line
 *     control and 8-bit characters in the target, RTSP/, ICE/
 *   HTTP/2.0 and HTTP/0.9                                 sl_http_line_check: 505
 *   empty names, SP in and behind names                   sl_http_token_lower
 *   any Host, none, several                               host_take, authority_check
 *   Transfer-Encoding with codings before chunked, in     transfer_encoding_check
 *     HTTP/1.0, with parameters
 *   all of chunk framing and trailers                     never sees them: body.c
 *   a head that ends elsewhere than we think              parse_run: it must stop exactly at our end
 *
 * Its own strictness that we rely on: Content-Length (digits only, once, no overflow, not beside
 * Transfer-Encoding), characters of values, method names. */
#include "layers/http/http.h"

enum field_id { F_OTHER, F_HOST, F_TE_CODING, F_CONNECTION, F_EXPECT, F_LENGTH, F_HOP };

static const struct {
	const char *name;
	uint8_t len;
	uint8_t id;
} known_fields[] = {
	{"host", 4, F_HOST},
	{"expect", 6, F_EXPECT},
	{"connection", 10, F_CONNECTION},
	{"content-length", 14, F_LENGTH},
	{"transfer-encoding", 17, F_TE_CODING},
	/* RFC 9110 section 7.6.1; trailer goes with the trailers that we drop */
	{"te", 2, F_HOP},
	{"upgrade", 7, F_HOP},
	{"trailer", 7, F_HOP},
	{"keep-alive", 10, F_HOP},
	{"proxy-connection", 16, F_HOP},
	{"http2-settings", 14, F_HOP},
};

/* What the fields say about the message itself */
struct facts {
	const struct http_field *host, *coding;
	bool close, keep_alive, expect;
	unsigned nb_options;
};

/* --- llhttp --- */

static struct http_parser *parser_of(llhttp_t *l)
{
	return sl_container_of(l, struct http_parser, llhttp);
}

static int on_url(llhttp_t *l, const char *at, size_t len)
{
	struct http_parser *ps = parser_of(l);

	ps->target = at;
	ps->target_len = (uint32_t)len;
	return 0;
}

static int on_name(llhttp_t *l, const char *at, size_t len)
{
	struct http_parser *ps = parser_of(l);
	struct http_field *f = &ps->fields[ps->nb_fields];

	if (ps->nb_fields == ps->max_fields) {
		ps->status = 431;
		return -1;
	}
	ps->nb_fields++;
	*f = (struct http_field){.name = (char *)(uintptr_t)at, .name_len = (uint16_t)len};
	if (!sl_http_token_lower(f->name, f->name_len)) {
		ps->status = 400;
		return -1;
	}
	return 0;
}

static int on_value(llhttp_t *l, const char *at, size_t len)
{
	struct http_parser *ps = parser_of(l);
	struct http_field *f = &ps->fields[ps->nb_fields - 1];

	if (!ps->nb_fields || f->value) {   /* a second span for one field: a fold that got through */
		ps->status = 400;
		return -1;
	}
	while (len && (at[len - 1] == ' ' || at[len - 1] == '\t'))
		len--;
	f->value = at;
	f->value_len = (uint16_t)len;
	if (!sl_http_value_ok(at, f->value_len)) {
		ps->status = 400;
		return -1;
	}
	return 0;
}

static int on_head_end(llhttp_t *l)
{
	(void)l;
	return HPE_PAUSED;   /* bodies are not its business */
}

void sl_http_parser_init(struct http_parser *ps)
{
	llhttp_settings_init(&ps->settings);
	ps->settings.on_url = on_url;
	ps->settings.on_header_field = on_name;
	ps->settings.on_header_value = on_value;
	ps->settings.on_headers_complete = on_head_end;
	llhttp_init(&ps->llhttp, HTTP_REQUEST, &ps->settings);
}

static int parse_run(struct http_parser *ps, const uint8_t *head, uint32_t len)
{
	llhttp_errno_t e;

	ps->nb_fields = 0;
	ps->status = 0;
	ps->target = NULL;
	llhttp_reset(&ps->llhttp);
	e = llhttp_execute(&ps->llhttp, (const char *)head, len);
	if (ps->status)
		return ps->status;
	if (e == HPE_INVALID_METHOD || e == HPE_INVALID_CONSTANT)
		return 501;   /* its form was checked: a method that nobody here knows (RFC 9110 section 9.1) */
	if (e != HPE_PAUSED || llhttp_get_error_pos(&ps->llhttp) != (const char *)head + len || !ps->target)
		return 400;
	return ps->llhttp.method == HTTP_CONNECT ? 501 : 0;   /* we are no tunnel */
}

/* --- fields --- */

static enum field_id field_id(const struct http_field *f)
{
	for (unsigned i = 0; i < sl_nb(known_fields); i++) {
		if (known_fields[i].len == f->name_len && !memcmp(known_fields[i].name, f->name, f->name_len))
			return known_fields[i].id;
	}
	return F_OTHER;
}

/* Connection names the fields that are for us alone (RFC 9110 section 7.6.1). */
static int connection_take(struct http_parser *ps, const struct http_field *conn, struct facts *facts)
{
	const char *p = conn->value, *end = p + conn->value_len, *option;
	uint32_t len;

	while (sl_http_list_next(&p, end, &option, &len)) {
		if (!sl_http_token_ok(option, len) || ++facts->nb_options > HTTP_CONN_OPTIONS_MAX)
			return 400;
		facts->close |= sl_http_text_is(option, len, "close");
		facts->keep_alive |= sl_http_text_is(option, len, "keep-alive");
		for (uint32_t i = 0; i < ps->nb_fields; i++) {
			struct http_field *f = &ps->fields[i];

			f->drop |= f->name_len == len && sl_http_same(option, f->name, len);
		}
	}
	return 0;
}

static int field_take(struct http_parser *ps, struct http_field *f, struct facts *facts)
{
	switch (field_id(f)) {
	case F_OTHER:
		return 0;
	case F_HOST:
		if (facts->host)
			return 400;
		facts->host = f;
		break;
	case F_TE_CODING:
		if (facts->coding)
			return 400;
		facts->coding = f;
		break;
	case F_EXPECT:
		if (!sl_http_text_is(f->value, f->value_len, "100-continue") && ps->llhttp.http_minor)
			return 417;
		facts->expect = true;
		break;
	case F_CONNECTION:
		f->drop = true;
		return connection_take(ps, f, facts);
	default:
		break;
	}
	f->drop = true;
	return 0;
}

/* Whether the body's end can be known: RFC 9112 sections 6.1 and 6.3. A coding that we do not know but that leaves
 * chunked last is 501; anything where chunked is not the last, or not once, has no certain end and is 400. */
static int transfer_encoding_check(const struct http_field *f, unsigned version_minor)
{
	const char *p = f->value, *end = p + f->value_len, *member;
	uint32_t len;
	unsigned nb = 0, nb_chunked = 0;
	bool last = false;

	while (sl_http_list_next(&p, end, &member, &len)) {
		last = sl_http_text_is(member, len, "chunked");
		nb_chunked += last;
		nb++;
	}
	if (!version_minor || !last || nb_chunked != 1)
		return 400;
	return nb == 1 && f->value_len == 7 ? 0 : nb == 1 ? 400 : 501;
}

static int framing_check(const struct http_parser *ps, const struct facts *facts, uint64_t max, struct http_req *req)
{
	int status;

	if (facts->coding) {
		status = transfer_encoding_check(facts->coding, ps->llhttp.http_minor);
		if (status)
			return status;
		req->body_len = UINT64_MAX;
		return (ps->llhttp.flags & (F_CHUNKED | F_CONTENT_LENGTH)) == F_CHUNKED ? 0 : 400;
	}
	req->body_len = ps->llhttp.flags & F_CONTENT_LENGTH ? ps->llhttp.content_length : 0;
	return (max && req->body_len > max) || req->body_len == UINT64_MAX ? 413 : 0;
}

/* RFC 9112 sections 3.2 and 3.2.2: the target's authority replaces that of Host, which must be there all the same. */
static int authority_check(const struct http_parser *ps, const struct facts *facts, struct http_target *t)
{
	const struct http_field *host = facts->host;

	if (!host)
		return ps->llhttp.http_minor ? 400 : 0;
	if (!sl_http_authority_ok(host->value, host->value_len))
		return 400;
	if (!t->authority) {
		t->authority = host->value;
		t->authority_len = host->value_len;
	}
	return 0;
}

static void req_fill(const struct http_parser *ps, const struct facts *facts, struct http_req *req)
{
	static const struct {
		uint8_t llhttp, method;
		bool idempotent;
	} methods[] = {
		{HTTP_GET, SL_HTTP_GET, true},	       {HTTP_HEAD, SL_HTTP_HEAD, true},
		{HTTP_POST, SL_HTTP_POST, false},      {HTTP_PUT, SL_HTTP_PUT, true},
		{HTTP_DELETE, SL_HTTP_DELETE, true},   {HTTP_OPTIONS, SL_HTTP_OPTIONS, true},
		{HTTP_PATCH, SL_HTTP_PATCH, false},    {HTTP_TRACE, SL_HTTP_OTHER, true},
	};

	for (unsigned i = 0; i < sl_nb(methods); i++) {
		if (methods[i].llhttp == ps->llhttp.method) {
			req->method = methods[i].method;
			req->idempotent = methods[i].idempotent;
		}
	}
	req->version_minor = ps->llhttp.http_minor;
	req->keep = req->version_minor ? !facts->close : facts->keep_alive && !facts->close;
	req->expect = facts->expect && req->version_minor && req->body_len;
}

/* --- the message --- */

struct writer {
	uint8_t *base;
	uint32_t at;
};

/* Cannot run over: all texts are parts of the head, each once, and HTTP_TEXT_MAX leaves room for the structs. */
static uint16_t text_put(struct writer *w, const char *p, uint32_t len, __u16 *off)
{
	*off = (__u16)w->at;
	if (len)
		memcpy(w->base + w->at, p, len);
	w->at += len;
	return (uint16_t)len;
}

static void message_write(const struct http_parser *ps, const struct http_req *req, const struct http_target *t,
			  const uint8_t *head, uint8_t *msg)
{
	const char *method = (const char *)head, *method_end = memchr(method, ' ', HTTP_TEXT_MAX);
	struct sl_http_request r = {.magic = SL_HTTP_MAGIC, .body_len = req->body_len, .method = req->method,
				    .version_minor = req->version_minor};
	struct writer w = {.base = msg, .at = sizeof(r)};
	uint8_t *fields = msg + sizeof(r);

	for (uint32_t i = 0; i < ps->nb_fields; i++)
		r.nb_fields += !ps->fields[i].drop;
	w.at += r.nb_fields * (uint32_t)sizeof(struct sl_http_field);
	r.method_len = text_put(&w, method, (uint32_t)(method_end - method), &r.method_off);
	r.path_len = text_put(&w, t->path, t->path_len, &r.path_off);
	r.query_len = text_put(&w, t->query, t->query_len, &r.query_off);
	r.authority_len = text_put(&w, t->authority, t->authority_len, &r.authority_off);
	for (uint32_t i = 0; i < ps->nb_fields; i++) {
		const struct http_field *f = &ps->fields[i];
		struct sl_http_field put;

		if (f->drop)
			continue;
		put.name_len = text_put(&w, f->name, f->name_len, &put.name_off);
		put.value_len = text_put(&w, f->value, f->value_len, &put.value_off);
		memcpy(fields, &put, sizeof(put));
		fields += sizeof(put);
	}
	r.head_len = (__u16)w.at;
	memcpy(msg, &r, sizeof(r));
}

int sl_http_request_parse(struct http_parser *ps, const struct sl_http_conf *conf, uint8_t *head, uint32_t len,
			  uint8_t *msg, struct http_req *req)
{
	struct http_target target;
	struct facts facts = {0};
	int status;

	ps->max_fields = conf->max_fields;
	status = parse_run(ps, head, len);
	if (!status && ps->target_len > conf->max_target_bytes)
		status = 414;
	if (!status)
		status = sl_http_target_split(ps->target, ps->target_len, ps->llhttp.method == HTTP_OPTIONS, &target);
	for (uint32_t i = 0; i < ps->nb_fields; i++) {
		if (!ps->fields[i].value)   /* empty, but not no text */
			ps->fields[i].value = ps->fields[i].name;
	}
	for (uint32_t i = 0; !status && i < ps->nb_fields; i++)
		status = field_take(ps, &ps->fields[i], &facts);
	if (!status)
		status = authority_check(ps, &facts, &target);
	if (!status)
		status = framing_check(ps, &facts, conf->max_body_bytes, req);
	if (status)
		return status;
	req_fill(ps, &facts, req);
	message_write(ps, req, &target, head, msg);
	return 0;
}
