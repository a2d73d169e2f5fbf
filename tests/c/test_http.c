/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http against a fake client side and a fake next layer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "fake_flow.h"
#include "layers/http/http.h"

#define TEXT(s) (s), (sizeof(s) - 1)
#define GET "GET / HTTP/1.1\r\nHost: a\r\n"
#define POST "POST /up HTTP/1.1\r\nHost: a\r\n"
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"

struct rig {
	struct fake k;
	struct sl_http_conf conf;
	struct sl_flow_open open;
	struct fake_flow *c;   /* the client's connection */
};

static struct sl_http_conf conf_default(void)
{
	return (struct sl_http_conf){
		.max_body_bytes = 1000000, .max_head_bytes = 4096, .max_fields = 20, .max_target_bytes = 1024,
		.head_timeout_ms = 1000, .body_timeout_ms = 2000, .keepalive_timeout_ms = 5000,
		.max_requests = 100, .max_connections = 10,
	};
}

static void rig_start(struct rig *r, struct sl_http_conf conf)
{
	memset(r, 0, sizeof(*r));
	fake_init(&r->k, &sl_layer_http);
	r->conf = conf;
	fake_conf(&r->k, SL_CONF_HTTP, &r->conf, sizeof(r->conf));
	assert_int_equal(fake_start(&r->k), 0);
	r->open = (struct sl_flow_open){.service = 3, .client_port = 0x1234, .client_addr = {[15] = 9}, .tls_version = 4};
	r->c = fake_open(&r->k, &r->open, sizeof(r->open), 0, NULL);
	assert_non_null(r->c);
}

static void rig_default(struct rig *r)
{
	rig_start(r, conf_default());
}

static struct fake_flow *rig_connect(struct rig *r)
{
	return fake_open(&r->k, &r->open, sizeof(r->open), 0, NULL);
}

static void say(struct rig *r, const char *text)
{
	fake_send(r->c, text, strlen(text), 0);
}

static int status_of(const struct fake_flow *c)
{
	return c->out_len > 12 && !memcmp(c->out, "HTTP/1.1 ", 9) ? atoi((const char *)c->out + 9) : 0;
}

static bool has(const struct fake_flow *c, const char *text)
{
	return strstr((const char *)c->out, text) != NULL;
}

static const char *body_of(const struct fake_flow *c)
{
	const char *end = strstr((const char *)c->out, "\r\n\r\n");

	assert_non_null(end);
	return end + 4;
}

static struct fake_flow *app(struct rig *r)
{
	return fake_last_opened(&r->k);
}

static const struct sl_http_request *request(struct rig *r)
{
	assert_non_null(app(r));
	return (const void *)app(r)->msg;
}

static bool text_at(const void *msg, unsigned off, unsigned len, const char *text)
{
	return strlen(text) == len && !memcmp((const char *)msg + off, text, len);
}

/* "name: value" among the fields of the request that app got */
static bool app_has(struct rig *r, const char *name, const char *value)
{
	const struct sl_http_request *q = request(r);
	const struct sl_http_field *f = (const void *)(q + 1);

	for (unsigned i = 0; i < q->nb_fields; i++) {
		if (text_at(q, f[i].name_off, f[i].name_len, name))
			return !value || text_at(q, f[i].value_off, f[i].value_len, value);
	}
	return false;
}

/* A message of an application: fields is "name: value\n..." */
static uint32_t message(uint8_t *out, unsigned status, uint64_t body_len, const char *fields, const void *body, uint32_t len)
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

static void answer(struct rig *r, unsigned status, const char *fields, const char *body)
{
	uint8_t m[4096];
	uint32_t len = message(m, status, strlen(body), fields, body, (uint32_t)strlen(body));

	fake_send(app(r), m, len, SL_F_FIN);
}

/* ---------------------------------------------------------------------------------------------------------------- */

static void get_is_passed_on_and_answered(void **state)
{
	struct rig r;
	const struct sl_http_request *q;
	(void)state;

	rig_default(&r);
	say(&r, "GET /a/b?c=d HTTP/1.1\r\nHost: Example.com:80\r\nX-One:  two \t\r\nEmpty:\r\nConnection: x-gone, Keep-Alive\r\n"
		"X-Gone: 1\r\nTE: trailers\r\nKeep-Alive: timeout=3\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n\r\n");
	q = request(&r);
	assert_int_equal(q->magic, SL_HTTP_MAGIC);
	assert_int_equal(q->head_len, app(&r)->msg_len);
	assert_int_equal(q->nb_fields, 2);
	assert_int_equal(q->body_len, 0);
	assert_int_equal(q->method, SL_HTTP_GET);
	assert_int_equal(q->version_minor, 1);
	assert_int_equal(q->tls, 1);
	assert_int_equal(q->service, 3);
	assert_int_equal(q->client_port, 0x1234);
	assert_int_equal(q->client_addr[15], 9);
	assert_true(text_at(q, q->method_off, q->method_len, "GET"));
	assert_true(text_at(q, q->path_off, q->path_len, "/a/b"));
	assert_true(text_at(q, q->query_off, q->query_len, "c=d"));
	assert_true(text_at(q, q->authority_off, q->authority_len, "Example.com:80"));
	assert_true(app_has(&r, "x-one", "two"));
	assert_true(app_has(&r, "empty", ""));
	assert_true(app(&r)->open_flags & SL_F_FIN);
	assert_int_equal(r.c->out_len, 0);

	answer(&r, 200, "content-type: text/plain\n", "hello");
	assert_int_equal(status_of(r.c), 200);
	assert_true(has(r.c, "\r\ncontent-type: text/plain\r\n"));
	assert_true(has(r.c, "\r\ncontent-length: 5\r\n"));
	assert_true(has(r.c, "\r\nserver: swarmline\r\n"));
	assert_true(has(r.c, "\r\ndate: "));
	assert_false(has(r.c, "connection:"));
	assert_string_equal(body_of(r.c), "hello");
	assert_int_equal(r.c->nb_commits, 1);   /* head and body in one entry */
	assert_false(r.c->out_fin);
	assert_true(app(&r)->ended && !app(&r)->out_reset);
	assert_int_equal(r.k.inst.requests, 1);
	assert_int_equal(r.k.inst.active_flows, 1);
	assert_int_equal(r.k.inst.bytes_out, r.c->out_len);
	fake_send(r.c, NULL, 0, SL_F_FIN);
	assert_true(r.c->ended && r.c->out_fin && !r.c->out_reset);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);
}

/* --- what is refused ----------------------------------------------------------------------------------------------- */

static const struct bad {
	const char *name, *text;
	size_t len;
	int status;
} bad_heads[] = {
	{"bare LF after request line", TEXT("GET / HTTP/1.1\nHost: a\r\n\r\n"), 400},
	{"bare LF after field", TEXT("GET / HTTP/1.1\r\nHost: a\n\r\n"), 400},
	{"bare LF at the end", TEXT("GET / HTTP/1.1\r\nHost: a\r\n\n"), 400},
	{"bare CR in field", TEXT(GET "X: a\rb\r\n\r\n"), 400},
	{"CR CR LF", TEXT(GET "X: a\r\r\n\r\n"), 400},
	{"CR instead of LF", TEXT("GET / HTTP/1.1\r\rHost: a\r\n\r\n"), 400},
	{"NUL in field value", TEXT(GET "X: a\0b\r\n\r\n"), 400},
	{"NUL in field name", TEXT(GET "X\0: a\r\n\r\n"), 400},
	{"NUL in target", TEXT("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"NUL first", TEXT("\0GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"control character in value", TEXT(GET "X: a\001b\r\n\r\n"), 400},
	{"DEL in value", TEXT(GET "X: a\177b\r\n\r\n"), 400},
	{"folded line", TEXT(GET "X: a\r\n b\r\n\r\n"), 400},
	{"folded line by tab", TEXT(GET "X: a\r\n\tb\r\n\r\n"), 400},
	{"fold before the first field", TEXT("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), 400},
	{"space before colon", TEXT(GET "X : a\r\n\r\n"), 400},
	{"space before colon of Content-Length", TEXT(POST "Content-Length : 3\r\n\r\nabc"), 400},
	{"tab before colon", TEXT(GET "X\t: a\r\n\r\n"), 400},
	{"space in name", TEXT(GET "X Y: a\r\n\r\n"), 400},
	{"empty name", TEXT(GET ": a\r\n\r\n"), 400},
	{"no colon", TEXT(GET "X\r\n\r\n"), 400},
	{"8-bit name", TEXT(GET "\303\244: a\r\n\r\n"), 400},
	{"parenthesis in name", TEXT(GET "X(): a\r\n\r\n"), 400},
	{"no Host", TEXT("GET / HTTP/1.1\r\n\r\n"), 400},
	{"two Hosts", TEXT(GET "Host: a\r\n\r\n"), 400},
	{"two Hosts in 1.0", TEXT("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400},
	{"empty Host", TEXT("GET / HTTP/1.1\r\nHost:\r\n\r\n"), 400},
	{"Host with user", TEXT("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), 400},
	{"Host with path", TEXT("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), 400},
	{"Host with space", TEXT("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), 400},
	{"Host with bad port", TEXT("GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n"), 400},
	{"Host with open bracket", TEXT("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"), 400},
	{"Host list", TEXT("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), 400},
	{"absolute-form without Host", TEXT("GET http://a/ HTTP/1.1\r\n\r\n"), 400},
	{"absolute-form without authority", TEXT("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"absolute-form with user", TEXT("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"other scheme", TEXT("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"relative target", TEXT("GET a HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"asterisk with GET", TEXT("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"fragment", TEXT("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"8-bit target", TEXT("GET /\344 HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"tab in target", TEXT("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"two spaces before target", TEXT("GET  / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"two spaces before version", TEXT("GET /  HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"tab as separator", TEXT("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"space after version", TEXT("GET / HTTP/1.1 \r\nHost: a\r\n\r\n"), 400},
	{"space in target", TEXT("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"no target", TEXT("GET HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"space first", TEXT(" GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"two empty lines first", TEXT("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"LF first", TEXT("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"HTTP/0.9", TEXT("GET /\r\n"), 400},
	{"lower-case version", TEXT("GET / http/1.1\r\nHost: a\r\n\r\n"), 400},
	{"long version", TEXT("GET / HTTP/1.10\r\nHost: a\r\n\r\n"), 400},
	{"RTSP", TEXT("GET / RTSP/1.0\r\nHost: a\r\n\r\n"), 400},
	{"ICE", TEXT("SOURCE / ICE/1.0\r\nHost: a\r\n\r\n"), 400},
	{"TLS on a plain port", TEXT("\026\003\001\002\000\001"), 400},
	{"8-bit method", TEXT("G\344T / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"HTTP/2 preface", TEXT("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505},
	{"HTTP/2.0", TEXT("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505},
	{"HTTP/1.2", TEXT("GET / HTTP/1.2\r\nHost: a\r\n\r\n"), 505},
	{"HTTP/0.9 in full", TEXT("GET / HTTP/0.9\r\nHost: a\r\n\r\n"), 505},
	{"unknown method", TEXT("BREW / HTTP/1.1\r\nHost: a\r\n\r\n"), 501},
	{"lower-case method", TEXT("get / HTTP/1.1\r\nHost: a\r\n\r\n"), 501},
	{"method of RTSP", TEXT("DESCRIBE / HTTP/1.1\r\nHost: a\r\n\r\n"), 501},
	{"PRI as a method", TEXT("PRI / HTTP/1.1\r\nHost: a\r\n\r\n"), 400},
	{"CONNECT", TEXT("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"), 501},
	{"CL and TE", TEXT(POST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400},
	{"TE and CL", TEXT(POST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"), 400},
	{"two different CL", TEXT(POST "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 400},
	{"two equal CL", TEXT(POST "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"), 400},
	{"list of CL", TEXT(POST "Content-Length: 3, 3\r\n\r\nabc"), 400},
	{"CL with sign", TEXT(POST "Content-Length: +3\r\n\r\nabc"), 400},
	{"negative CL", TEXT(POST "Content-Length: -3\r\n\r\nabc"), 400},
	{"hexadecimal CL", TEXT(POST "Content-Length: 0x3\r\n\r\nabc"), 400},
	{"CL with inner space", TEXT(POST "Content-Length: 1 3\r\n\r\nabc"), 400},
	{"empty CL", TEXT(POST "Content-Length:\r\n\r\nabc"), 400},
	{"CL of 2^64", TEXT(POST "Content-Length: 18446744073709551616\r\n\r\nabc"), 400},
	{"CL of 2^64 - 1", TEXT(POST "Content-Length: 18446744073709551615\r\n\r\nabc"), 413},
	{"CL above the limit", TEXT(POST "Content-Length: 1000001\r\n\r\nabc"), 413},
	{"unknown coding before chunked", TEXT(POST "Transfer-Encoding: gzip, chunked\r\n\r\n"), 501},
	{"identity before chunked", TEXT(POST "Transfer-Encoding: identity, chunked\r\n\r\n"), 501},
	{"only an unknown coding", TEXT(POST "Transfer-Encoding: gzip\r\n\r\n"), 400},
	{"identity", TEXT(POST "Transfer-Encoding: identity\r\n\r\n"), 400},
	{"chunked not last", TEXT(POST "Transfer-Encoding: chunked, gzip\r\n\r\n"), 400},
	{"chunked twice", TEXT(POST "Transfer-Encoding: chunked, chunked\r\n\r\n"), 400},
	{"chunked in two fields", TEXT(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
	{"chunked after another field", TEXT(POST "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
	{"xchunked", TEXT(POST "Transfer-Encoding: xchunked\r\n\r\n"), 400},
	{"chunked with parameter", TEXT(POST "Transfer-Encoding: chunked;a=b\r\n\r\n"), 400},
	{"quoted chunked", TEXT(POST "Transfer-Encoding: \"chunked\"\r\n\r\n"), 400},
	{"chunked with vertical tab", TEXT(POST "Transfer-Encoding: \013chunked\r\n\r\n"), 400},
	{"chunked with comma", TEXT(POST "Transfer-Encoding: ,chunked\r\n\r\n"), 400},
	{"empty TE", TEXT(POST "Transfer-Encoding:\r\n\r\n"), 400},
	{"chunked in 1.0", TEXT("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400},
	{"unknown expectation", TEXT(POST "Content-Length: 3\r\nExpect: 200-maybe\r\n\r\n"), 417},
	{"Connection with bad member", TEXT(GET "Connection: a b\r\n\r\n"), 400},
	{"too many fields", TEXT(GET "1:\r\n2:\r\n3:\r\n4:\r\n5:\r\n6:\r\n7:\r\n8:\r\n9:\r\n10:\r\n11:\r\n12:\r\n13:\r\n14:\r\n15:\r\n16:\r\n"
			       "17:\r\n18:\r\n19:\r\n20:\r\n\r\n"), 431},
};

/* The client must get this status, then FIN; nothing reaches the next layer. */
static void refused(const char *name, const char *text, size_t len, int status, size_t step)
{
	struct rig r;

	rig_default(&r);
	for (size_t at = 0; at < len; at += step)
		fake_send(r.c, text + at, sl_min(step, len - at), 0);
	if (status_of(r.c) != status || !r.c->out_fin || r.k.nb_opened || !has(r.c, "\r\nconnection: close\r\n"))
		fail_msg("%s (step %zu): want %d, got %d fin %d opened %u: %s", name, step, status, status_of(r.c), r.c->out_fin,
			 r.k.nb_opened, r.c->out);
	assert_int_equal(r.k.inst.counters[SL_CNT_CLIENT_ERROR], 1);
	fake_send(r.c, TEXT(GET "\r\n"), 0);   /* nothing after it counts */
	assert_int_equal(r.k.nb_opened, 0);
	fake_send(r.c, NULL, 0, SL_F_FIN);
	assert_true(r.c->ended && !r.c->out_reset);
	fake_stop(&r.k);
}

static void bad_heads_are_refused(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sl_nb(bad_heads); i++) {
		refused(bad_heads[i].name, bad_heads[i].text, bad_heads[i].len, bad_heads[i].status, bad_heads[i].len);
		refused(bad_heads[i].name, bad_heads[i].text, bad_heads[i].len, bad_heads[i].status, 1);
	}
}

static void long_heads_are_refused(void **state)
{
	char text[6000];
	int n;
	(void)state;

	n = snprintf(text, sizeof(text), "GET /%01100d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
	refused("target above its limit", text, (size_t)n, 414, (size_t)n);
	n = snprintf(text, sizeof(text), "GET /%05000d HTTP/1.1\r\nHost: a\r\n\r\n", 0);
	refused("request line above the head's limit", text, (size_t)n, 414, (size_t)n);
	refused("request line above the head's limit", text, (size_t)n, 414, 7);
	n = snprintf(text, sizeof(text), GET "X: %05000d\r\n\r\n", 0);
	refused("field above the head's limit", text, (size_t)n, 431, (size_t)n);
	refused("field above the head's limit", text, (size_t)n, 431, 7);
}

static const struct bad bad_chunks[] = {
	{"no size", TEXT("\r\n"), 400},
	{"no hexadecimal size", TEXT("g\r\n"), 400},
	{"sign", TEXT("+3\r\nabc\r\n"), 400},
	{"0x", TEXT("0x3\r\nabc\r\n"), 400},
	{"space before size", TEXT(" 3\r\nabc\r\n"), 400},
	{"space behind size", TEXT("3 \r\nabc\r\n"), 400},
	{"size of 16 digits", TEXT("1000000000000000\r\n"), 400},
	{"many zeros", TEXT("0000000000000003\r\nabc\r\n"), 400},
	{"size above the limit", TEXT("f4241\r\n"), 413},
	{"size far above the limit", TEXT("fffffffffffffff\r\n"), 413},
	{"bare LF behind size", TEXT("3\nabc\r\n"), 400},
	{"CR without LF behind size", TEXT("3\rxabc\r\n"), 400},
	{"bare LF behind data", TEXT("3\r\nabc\n0\r\n\r\n"), 400},
	{"two other bytes behind data", TEXT("3\r\nabcxx0\r\n\r\n"), 400},
	{"CR without LF behind data", TEXT("3\r\nabc\rx0\r\n\r\n"), 400},
	{"more data than size", TEXT("3\r\nabcd\r\n"), 400},
	{"NUL in extension", TEXT("3;a\0\r\nabc\r\n"), 400},
	{"bare LF in extension", TEXT("3;a\nabc\r\n"), 400},
	{"bare CR in extension", TEXT("3;a\rb\r\nabc\r\n"), 400},
	{"folded trailer", TEXT("0\r\nX: a\r\n b\r\n\r\n"), 400},
	{"trailer without name", TEXT("0\r\n: a\r\n\r\n"), 400},
	{"trailer without colon", TEXT("0\r\nX\r\n\r\n"), 400},
	{"bare LF ends trailers", TEXT("0\r\nX: a\r\n\n"), 400},
	{"bare LF in trailer", TEXT("0\r\nX: a\n\r\n"), 400},
	{"CR without LF at the end", TEXT("0\r\n\rx"), 400},
	{"control character in trailer", TEXT("0\r\nX: \001\r\n\r\n"), 400},
};

static void bad_chunk_refused(const struct bad *bad, size_t step)
{
	struct rig r;

	rig_default(&r);
	say(&r, CHUNKED);
	assert_int_equal(r.k.nb_opened, 1);
	for (size_t at = 0; at < bad->len; at += step)
		fake_send(r.c, bad->text + at, sl_min(step, bad->len - at), 0);
	if (status_of(r.c) != bad->status || !r.c->out_fin || !app(&r)->out_reset || app(&r)->out_fin)
		fail_msg("chunk: %s: want %d, got %s", bad->name, bad->status, r.c->out);
	fake_stop(&r.k);
}

static void bad_chunks_are_refused(void **state)
{
	char text[9000];
	struct bad many = {"extensions without end", text, 0, 400};
	(void)state;

	for (unsigned i = 0; i < sl_nb(bad_chunks); i++) {
		bad_chunk_refused(&bad_chunks[i], bad_chunks[i].len);
		bad_chunk_refused(&bad_chunks[i], 1);
	}
	many.len = (size_t)snprintf(text, sizeof(text), "3;%08500d", 0);
	bad_chunk_refused(&many, many.len);
	many = (struct bad){"trailers without end", text, (size_t)snprintf(text, sizeof(text), "0\r\nX: %08500d", 0), 431};
	bad_chunk_refused(&many, many.len);
}

/* --- what is accepted, cut anywhere -------------------------------------------------------------------------------- */

static const char *const good[] = {
	GET "\r\n",
	"\r\n" GET "\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"HEAD /x HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET http://b:81?q HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET HTTPS://[fd77::10]:443/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /%00?a=/?b HTTP/1.1\r\nHost: [fd77::10]:443\r\nX: \344\366\r\n\r\n",
	POST "Content-Length: 5\r\n\r\nhello",
	POST "Content-Length: 0\r\n\r\n",
	POST "Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n00A;ext=\"v\";x\r\n0123456789\r\n0\r\nTrailer: x\r\nY:\r\n\r\n",
	"PATCH / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\nabc",
	"M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
};

struct seen {
	uint8_t msg[SL_HTTP_HEAD_MAX];
	uint32_t msg_len;
	uint8_t body[64];
	size_t body_len;
	bool fin, client_fin;
	int status;
};

static void run_cut(const char *text, size_t cut, size_t step, struct seen *seen)
{
	size_t len = strlen(text);
	struct rig r;

	memset(seen, 0, sizeof(*seen));
	rig_default(&r);
	if (cut)
		fake_send(r.c, text, cut, 0);
	for (size_t at = cut; at < len; at += step)
		fake_send(r.c, text + at, sl_min(step, len - at), 0);
	if (r.k.nb_opened != 1)
		fail_msg("not passed on (cut %zu): %s -> %s", cut, text, r.c->out);
	memcpy(seen->msg, app(&r)->msg, seen->msg_len = app(&r)->msg_len);
	memcpy(seen->body, app(&r)->out, seen->body_len = app(&r)->out_len);
	seen->fin = app(&r)->out_fin;
	fake_out_drop(r.c);   /* maybe a 100 */
	answer(&r, 200, "", "");
	seen->status = status_of(r.c);
	seen->client_fin = r.c->out_fin;
	fake_stop(&r.k);
}

static void cut_everywhere(const char *text)
{
	struct seen whole, cut;

	run_cut(text, 0, strlen(text), &whole);
	assert_int_equal(whole.status, 200);
	assert_true(whole.fin);
	for (size_t i = 1; i <= strlen(text); i++) {
		run_cut(text, i, i < strlen(text) ? strlen(text) - i : 1, &cut);
		if (memcmp(&whole, &cut, sizeof(cut)))
			fail_msg("cut at %zu differs: %s", i, text);
	}
	run_cut(text, 0, 1, &cut);
	assert_memory_equal(&whole, &cut, sizeof(cut));
}

static void good_requests_do_not_depend_on_cuts(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sl_nb(good); i++)
		cut_everywhere(good[i]);
}

static void targets_are_split(void **state)
{
	static const struct {
		const char *line, *path, *query, *authority;
	} rows[] = {
		{"GET / HTTP/1.1", "/", "", "h"},
		{"GET /? HTTP/1.1", "/", "", "h"},
		{"GET //x/?a?b HTTP/1.1", "//x/", "a?b", "h"},
		{"GET http://other:8080/p?q HTTP/1.1", "/p", "q", "other:8080"},
		{"GET https://other HTTP/1.1", "/", "", "other"},
		{"GET http://other?q HTTP/1.1", "/", "q", "other"},
		{"OPTIONS http://other HTTP/1.1", "*", "", "other"},
		{"OPTIONS * HTTP/1.1", "*", "", "h"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		const struct sl_http_request *q;
		struct rig r;
		char text[200];

		snprintf(text, sizeof(text), "%s\r\nHost: h\r\n\r\n", rows[i].line);
		rig_default(&r);
		say(&r, text);
		q = request(&r);
		assert_true(text_at(q, q->path_off, q->path_len, rows[i].path));
		assert_true(text_at(q, q->query_off, q->query_len, rows[i].query));
		assert_true(text_at(q, q->authority_off, q->authority_len, rows[i].authority));
		assert_false(app_has(&r, "host", NULL));
		fake_stop(&r.k);
	}
}

/* --- connections --------------------------------------------------------------------------------------------------- */

static void pipelined_requests_run_one_by_one(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: a\r\n\r\n");
	assert_int_equal(r.k.nb_opened, 1);
	assert_true(fake_backlog(r.c) > 0);
	answer(&r, 200, "", "one");
	assert_int_equal(r.k.nb_opened, 2);
	assert_string_equal((const char *)app(&r)->out, "abc");
	assert_true(app(&r)->out_fin);
	answer(&r, 200, "", "two");
	assert_int_equal(r.k.nb_opened, 3);
	assert_int_equal(fake_backlog(r.c), 0);
	answer(&r, 200, "", "three");
	assert_true(strstr((char *)r.c->out, "one") < strstr((char *)r.c->out, "two"));
	assert_true(strstr((char *)r.c->out, "two") < strstr((char *)r.c->out, "three"));
	assert_int_equal(r.k.inst.requests, 3);
	fake_stop(&r.k);
}

static void keep_alive_follows_the_client(void **state)
{
	static const struct {
		const char *text;
		bool close;
		const char *says;
	} rows[] = {
		{GET "\r\n", false, NULL},
		{GET "Connection: close\r\n\r\n", true, "connection: close\r\n"},
		{GET "Connection: x, CLOSE\r\n\r\n", true, "connection: close\r\n"},
		{"GET / HTTP/1.0\r\n\r\n", true, "connection: close\r\n"},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false, "connection: keep-alive\r\n"},
		{"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", true, "connection: close\r\n"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		answer(&r, 200, "", "x");
		assert_int_equal(r.c->out_fin, rows[i].close);
		assert_true(rows[i].says ? has(r.c, rows[i].says) : !has(r.c, "connection:"));
		fake_stop(&r.k);
	}
}

static void requests_and_connections_are_limited(void **state)
{
	struct sl_http_conf conf = conf_default();
	struct fake_flow *second;
	struct rig r;
	int status;
	(void)state;

	conf.max_requests = 2;
	conf.max_connections = 2;
	rig_start(&r, conf);
	second = rig_connect(&r);
	assert_non_null(second);
	assert_null(fake_open(&r.k, &r.open, sizeof(r.open), 0, &status));
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_reset(second, SL_ERROR_CLIENT);
	assert_non_null(rig_connect(&r));
	assert_null(fake_open(&r.k, &r.open, 10, 0, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);

	say(&r, GET "\r\n");
	answer(&r, 200, "", "");
	assert_false(has(r.c, "connection: close"));
	say(&r, GET "\r\n");
	answer(&r, 200, "", "");
	assert_true(has(r.c, "connection: close"));
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void half_closed_client_gets_its_answer(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	fake_send(r.c, TEXT(GET "\r\n"), SL_F_FIN);
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(r.c), 200);
	assert_true(has(r.c, "connection: close"));
	assert_true(r.c->ended && !r.c->out_reset);
	fake_stop(&r.k);

	rig_default(&r);
	fake_send(r.c, TEXT("GET / HT"), SL_F_FIN);
	assert_int_equal(status_of(r.c), 400);
	assert_true(r.c->ended);
	fake_stop(&r.k);

	rig_default(&r);
	fake_send(r.c, TEXT(POST "Content-Length: 5\r\n\r\nab"), SL_F_FIN);
	assert_int_equal(status_of(r.c), 400);
	assert_true(app(&r)->out_reset && !app(&r)->out_fin);
	fake_stop(&r.k);
}

static void client_gone_ends_the_request(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	fake_reset(r.c, SL_ERROR_CLIENT);
	assert_true(app(&r)->out_reset);
	assert_int_equal(app(&r)->out_status, SL_ERROR_CLIENT);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);
}

static void drain_closes_after_the_next_answer(void **state)
{
	struct fake_flow *idle;
	struct rig r;
	(void)state;

	rig_default(&r);
	idle = rig_connect(&r);
	say(&r, GET "\r\n");
	r.k.inst.draining = true;
	sl_layer_http.drain(&r.k.inst);
	assert_false(idle->out_fin);
	assert_null(rig_connect(&r));
	answer(&r, 200, "", "x");
	assert_true(has(r.c, "connection: close") && r.c->out_fin);
	fake_send(idle, TEXT(GET "\r\n"), 0);   /* was on its way */
	answer(&r, 200, "", "y");
	assert_true(has(idle, "connection: close") && idle->out_fin);
	fake_stop(&r.k);
}

/* --- answers ------------------------------------------------------------------------------------------------------- */

static void unknown_length_is_chunked_or_closed(void **state)
{
	uint8_t m[200];
	uint32_t len;
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	len = message(m, 200, UINT64_MAX, "", "hello", 5);
	fake_send(app(&r), m, len, 0);
	fake_send(app(&r), "0123456789abcdefXYZ", 19, 0);
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_true(has(r.c, "transfer-encoding: chunked\r\n"));
	assert_false(has(r.c, "content-length"));
	assert_string_equal(body_of(r.c), "5\r\nhello\r\n13\r\n0123456789abcdefXYZ\r\n0\r\n\r\n");
	assert_false(r.c->out_fin);
	fake_stop(&r.k);

	rig_default(&r);
	say(&r, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
	fake_send(app(&r), m, len, SL_F_FIN);
	assert_false(has(r.c, "transfer-encoding") || has(r.c, "content-length"));
	assert_string_equal(body_of(r.c), "hello");
	assert_true(has(r.c, "connection: close") && r.c->out_fin && !r.c->out_reset);
	fake_stop(&r.k);
}

static void some_answers_have_no_body(void **state)
{
	static const struct {
		const char *text;
		unsigned status;
		uint64_t body_len;
		const char *says, *says_not;
	} rows[] = {
		{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 200, 1234, "content-length: 1234\r\n", "transfer-encoding"},
		{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 200, UINT64_MAX, "200 OK", "content-length"},
		{GET "\r\n", 204, 0, "204 No Content", "content-length"},
		{GET "\r\n", 304, 77, "content-length: 77\r\n", "transfer-encoding"},
		{GET "\r\n", 205, 0, "content-length: 0\r\n", "transfer-encoding"},
		{GET "\r\n", 599, 0, "HTTP/1.1 599 \r\n", "transfer-encoding"},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		uint8_t m[200];
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		fake_send(app(&r), m, message(m, rows[i].status, rows[i].body_len, "", "", 0), SL_F_FIN);
		assert_true(has(r.c, rows[i].says));
		assert_false(has(r.c, rows[i].says_not));
		assert_string_equal(body_of(r.c), "");
		assert_false(r.c->out_fin || r.c->out_reset);
		say(&r, GET "\r\n");   /* the connection is in step */
		assert_int_equal(r.k.nb_opened, 2);
		fake_stop(&r.k);
	}
}

static void head_in_pieces(void **state)
{
	uint8_t m[200];
	uint32_t len = message(m, 200, 5, "x-a: b\nx-c: d\n", "hello", 5);
	(void)state;

	for (uint32_t cut = 1; cut < len; cut++) {
		struct rig r;

		rig_default(&r);
		say(&r, GET "\r\n");
		fake_send(app(&r), m, cut, 0);
		fake_send(app(&r), m + cut, len - cut, SL_F_FIN);
		assert_true(has(r.c, "x-a: b\r\nx-c: d\r\n"));
		assert_string_equal(body_of(r.c), "hello");
		fake_stop(&r.k);
	}
}

static void length_must_be_kept(void **state)
{
	uint8_t m[200];
	struct rig r;
	(void)state;

	rig_default(&r);   /* short: the client must see it */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 9, "", "hello", 5), SL_F_FIN);
	assert_true(r.c->out_reset);
	assert_int_equal(r.k.inst.counters[SL_CNT_BAD_MESSAGE], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* long: what was announced, then the end */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 4, "", "hello", 5), 0);
	fake_send(app(&r), "more", 4, SL_F_FIN);
	assert_string_equal(body_of(r.c), "hell");
	assert_true(r.c->out_fin && !r.c->out_reset);
	assert_int_equal(r.k.inst.counters[SL_CNT_BAD_MESSAGE], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* a body to HEAD */
	say(&r, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
	fake_send(app(&r), m, message(m, 200, 5, "", "hello", 5), SL_F_FIN);
	assert_string_equal(body_of(r.c), "");
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void hostile_fix(struct sl_http_response *m, struct sl_http_field *f, unsigned n)
{
	static const struct {
		unsigned where;   /* offset in the message */
		uint16_t value;
	} rows[] = {
		{0, 0},                                              /* magic */
		{offsetof(struct sl_http_response, head_len), 0},
		{offsetof(struct sl_http_response, head_len), 23},
		{offsetof(struct sl_http_response, head_len), 24},   /* fields lie behind it */
		{offsetof(struct sl_http_response, head_len), 18433},
		{offsetof(struct sl_http_response, head_len), 65535},
		{offsetof(struct sl_http_response, nb_fields), 129},
		{offsetof(struct sl_http_response, nb_fields), 65535},
		{offsetof(struct sl_http_response, nb_fields), 20},
		{offsetof(struct sl_http_response, status), 0},
		{offsetof(struct sl_http_response, status), 101},
		{offsetof(struct sl_http_response, status), 199},
		{offsetof(struct sl_http_response, status), 600},
		{sizeof(*m) + offsetof(struct sl_http_field, name_off), 65535},
		{sizeof(*m) + offsetof(struct sl_http_field, name_len), 65535},
		{sizeof(*m) + offsetof(struct sl_http_field, name_len), 0},
		{sizeof(*m) + offsetof(struct sl_http_field, value_off), 60000},
		{sizeof(*m) + offsetof(struct sl_http_field, value_len), 40},
	};

	(void)f;
	if (n < sl_nb(rows))
		memcpy((uint8_t *)m + rows[n].where, &rows[n].value, 2);
}

static void hostile_answers_become_502(void **state)
{
	static const char *const fields[] = {
		"X-Upper: a\n", "x y: a\n", "x: a\rb\n", "x: \001\n", "x: \177\n", "content-length: 5\n", "transfer-encoding: chunked\n",
		"connection: close\n", "keep-alive: x\n", "upgrade: x\n", "trailer: x\n", "a: b\nx:y: c\n",
	};
	(void)state;

	for (unsigned i = 0; i < 18 + sl_nb(fields) + 1; i++) {
		uint8_t m[300];
		uint32_t len;
		struct rig r;

		rig_default(&r);
		say(&r, GET "\r\n");
		len = message(m, 200, 2, i < 18 ? "x-a: b\n" : i - 18 < sl_nb(fields) ? fields[i - 18] : "a: b\n", "hi", 2);
		hostile_fix((void *)m, NULL, i);
		if (i == 18 + sl_nb(fields))
			m[len - 3] = 0;   /* NUL in the value */
		fake_send(app(&r), m, len, SL_F_FIN);
		if (status_of(r.c) != 502 || r.c->out_fin)
			fail_msg("row %u: %s", i, r.c->out);
		assert_true(r.k.inst.counters[SL_CNT_BAD_MESSAGE] > 0);
		assert_true(app(&r)->ended);
		say(&r, GET "\r\n");   /* the client is not to blame */
		assert_int_equal(r.k.nb_opened, 2);
		fake_stop(&r.k);
	}
}

static void overlapping_fields_are_bounded(void **state)
{
	static uint8_t m[SL_HTTP_HEAD_MAX];
	struct sl_http_response h = {.magic = SL_HTTP_MAGIC, .status = 200, .nb_fields = 128, .head_len = SL_HTTP_HEAD_MAX};
	struct sl_http_field f = {.name_off = 2000, .name_len = 8000, .value_off = 2000, .value_len = 16000};
	struct rig r;
	(void)state;

	memset(m, 'a', sizeof(m));
	memcpy(m, &h, sizeof(h));
	for (unsigned i = 0; i < 128; i++)
		memcpy(m + sizeof(h) + i * sizeof(f), &f, sizeof(f));
	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), m, sizeof(m), SL_F_FIN);
	assert_int_equal(status_of(r.c), 502);
	fake_stop(&r.k);
}

static void empty_answer_is_502(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_int_equal(status_of(r.c), 502);
	fake_stop(&r.k);
}

/* --- bodies and backpressure --------------------------------------------------------------------------------------- */

static void expect_is_answered(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_string_equal((const char *)r.c->out, "HTTP/1.1 100 Continue\r\n\r\n");
	fake_out_drop(r.c);
	say(&r, "abc");
	assert_string_equal((const char *)app(&r)->out, "abc");
	answer(&r, 201, "", "");
	assert_int_equal(status_of(r.c), 201);
	assert_false(r.c->out_fin);
	/* behind another request: the head comes out of the backlog */
	fake_out_drop(r.c);
	say(&r, GET "\r\n" POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	answer(&r, 204, "", "");
	assert_int_equal(r.k.nb_opened, 3);
	assert_true(has(r.c, "\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"));
	fake_stop(&r.k);

	rig_default(&r);   /* the body is there already */
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\na");
	assert_int_equal(r.c->out_len, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* HTTP/1.0 does not know it */
	say(&r, "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_int_equal(r.c->out_len, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* not wanted: nobody to give it to */
	r.k.open_err = -ENETUNREACH;
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void pump(struct rig *r, struct fake_flow *ff, uint32_t step)
{
	for (unsigned i = 0; i < 400000 && ff->flow.blocked; i++)
		fake_credit(ff, step);
	(void)r;
}

static void body_waits_for_the_next_layer(void **state)
{
	static const char text[] = CHUNKED "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: x\r\n\r\n";
	(void)state;

	for (uint32_t step = 1; step < 8; step++) {
		struct rig r;

		rig_default(&r);
		r.k.window = 0;
		fake_send(r.c, TEXT(text), 0);
		assert_true(fake_backlog(r.c) > 0);
		assert_int_equal(app(&r)->out_len, 0);
		fake_tick(&r.k, 10000);   /* not the client's fault */
		assert_false(r.c->ended);
		pump(&r, app(&r), step);
		assert_string_equal((const char *)app(&r)->out, "hello world");
		assert_true(app(&r)->out_fin);
		assert_int_equal(fake_backlog(r.c), 0);
		fake_stop(&r.k);
	}
}

static void tiny_chunks_share_a_slot(void **state)
{
	char text[2000] = "";
	struct rig r;
	(void)state;

	for (unsigned i = 0; i < 100; i++)
		strcat(text, "1\r\nx\r\n");
	strcat(text, "0\r\n\r\n");
	rig_default(&r);
	say(&r, CHUNKED);
	say(&r, text);
	assert_int_equal(app(&r)->out_len, 100);
	assert_int_equal(app(&r)->nb_commits, 1);
	assert_true(app(&r)->out_fin);
	fake_stop(&r.k);
}

/* An answer of 300 bytes in pieces to a client that takes step bytes at a time. */
static void slow_reader(uint32_t step, bool chunked)
{
	uint8_t m[400];
	char body[301];
	uint32_t len;
	struct rig r;

	for (unsigned i = 0; i < 300; i++)
		body[i] = (char)('a' + i % 26);
	body[300] = 0;
	rig_default(&r);
	r.c->flow.tx_window = 0;
	say(&r, GET "\r\n" "GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
	len = message(m, 200, chunked ? UINT64_MAX : 300, "", body, 100);
	fake_send(app(&r), m, len, 0);
	fake_send(app(&r), body + 100, 200, SL_F_FIN);
	assert_int_equal(r.k.nb_opened, 1);
	pump(&r, r.c, step);
	assert_int_equal(r.k.nb_opened, 2);
	if (!chunked) {
		assert_string_equal(body_of(r.c), body);
	} else {   /* decode it again */
		struct http_body b;
		uint8_t out[400];
		uint32_t made;

		sl_http_body_init(&b, UINT64_MAX, 0);
		assert_int_equal(sl_http_body_decode(&b, (const uint8_t *)body_of(r.c), (uint32_t)strlen(body_of(r.c)), out,
						     sizeof(out), &made), strlen(body_of(r.c)));
		assert_true(sl_http_body_ended(&b));
		assert_int_equal(made, 300);
		assert_memory_equal(out, body, 300);
	}
	fake_stop(&r.k);
}

static void answer_waits_for_the_client(void **state)
{
	(void)state;
	for (uint32_t step = 1; step < 40; step++) {
		slow_reader(step, false);
		slow_reader(step, true);
	}
}

static void errors_wait_for_the_client(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	r.c->flow.tx_window = 0;
	say(&r, "GET / HTTP/1.1\r\n\r\n");
	assert_int_equal(r.c->out_len, 0);
	pump(&r, r.c, 1);
	assert_int_equal(status_of(r.c), 400);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void bodies_of_megabytes_pass_unchanged(void **state)
{
	enum { LEN = 900001 };
	uint8_t *body = malloc(LEN), m[100];
	char head[200];
	struct rig r;
	uint32_t n;
	(void)state;

	for (uint32_t i = 0; i < LEN; i++)
		body[i] = (uint8_t)(i * 2654435761u >> 24);
	rig_default(&r);
	n = (uint32_t)snprintf(head, sizeof(head), POST "Content-Length: %u\r\n\r\n", LEN);
	fake_send(r.c, head, n, 0);
	for (uint32_t at = 0; at < LEN; at += 16384)
		fake_send(r.c, body + at, sl_min(16384u, LEN - at), 0);
	assert_int_equal(app(&r)->out_len, LEN);
	assert_memory_equal(app(&r)->out, body, LEN);
	fake_send(app(&r), m, message(m, 200, LEN, "", "", 0), 0);
	for (uint32_t at = 0; at < LEN; at += 18432)
		fake_send(app(&r), body + at, sl_min(18432u, LEN - at), 0);
	fake_send(app(&r), NULL, 0, SL_F_FIN);
	assert_memory_equal(body_of(r.c), body, LEN);
	assert_int_equal(r.c->out_len - (size_t)(body_of(r.c) - (char *)r.c->out), LEN);
	fake_stop(&r.k);
	free(body);
}

static void echo_streams_both_ways(void **state)
{
	uint8_t m[100];
	struct rig r;
	(void)state;

	rig_default(&r);
	say(&r, CHUNKED "3\r\nabc\r\n");
	fake_send(app(&r), m, message(m, 200, UINT64_MAX, "", "abc", 3), 0);
	assert_true(has(r.c, "3\r\nabc\r\n"));
	say(&r, "2\r\nde\r\n0\r\n\r\n");
	assert_true(app(&r)->out_fin);
	fake_send(app(&r), "de", 2, SL_F_FIN);
	assert_string_equal(body_of(r.c), "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
	assert_false(r.c->out_fin);
	fake_stop(&r.k);
}

static void chunked_body_above_the_limit(void **state)
{
	struct sl_http_conf conf = conf_default();
	struct rig r;
	(void)state;

	conf.max_body_bytes = 5;
	rig_start(&r, conf);
	say(&r, CHUNKED "3\r\nabc\r\n2\r\nde\r\n");
	assert_int_equal(r.c->out_len, 0);
	say(&r, "1\r\nf\r\n");
	assert_int_equal(status_of(r.c), 413);
	assert_true(r.c->out_fin && app(&r)->out_reset);
	fake_stop(&r.k);
}

static void early_answer(void **state)
{
	char head[200], *rest = calloc(1, 200000);
	struct rig r;
	(void)state;

	memset(rest, 'x', 200000);
	rig_default(&r);   /* a short rest is read and the connection stays */
	say(&r, POST "Content-Length: 1000\r\n\r\nabc");
	answer(&r, 403, "", "no");
	assert_int_equal(status_of(r.c), 403);
	assert_true(app(&r)->out_reset);
	assert_false(r.c->out_fin);
	fake_send(r.c, rest, 997, 0);
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 2);
	fake_stop(&r.k);

	rig_default(&r);   /* a long one is announced to end the connection */
	snprintf(head, sizeof(head), POST "Content-Length: 200000\r\n\r\n");
	say(&r, head);
	answer(&r, 403, "", "no");
	assert_true(has(r.c, "connection: close") && r.c->out_fin);
	fake_send(r.c, rest, 200000, 0);
	assert_false(r.c->out_reset);   /* a reset could destroy the answer on its way */
	fake_stop(&r.k);

	rig_default(&r);   /* so is one of unknown length, once it gets long */
	say(&r, CHUNKED "30d40\r\n");
	answer(&r, 403, "", "no");
	fake_send(r.c, rest, 200000, 0);
	assert_true(r.c->out_fin);
	assert_int_equal(r.k.nb_opened, 1);
	fake_stop(&r.k);

	rig_default(&r);   /* the client may never send what it asked 100 for */
	r.k.window = 0;
	r.c->flow.tx_window = 0;
	say(&r, POST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	answer(&r, 200, "", "ok");
	fake_credit(r.c, 10000);
	assert_true(has(r.c, "100 Continue") && has(r.c, "200 OK"));
	fake_stop(&r.k);
	free(rest);
}

/* --- the next layer fails ------------------------------------------------------------------------------------------ */

static void no_route_is_503(void **state)
{
	struct rig r;
	(void)state;

	rig_default(&r);
	r.k.open_err = -ENETUNREACH;
	say(&r, GET "\r\n" GET "\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(has(r.c, "retry-after: 1\r\n"));
	assert_false(r.c->out_fin);
	r.k.open_err = 0;
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 1);
	fake_stop(&r.k);

	rig_default(&r);
	r.k.no_next = true;
	say(&r, POST "Content-Length: 3\r\n\r\n");
	assert_int_equal(status_of(r.c), 503);
	assert_true(r.c->out_fin);   /* its body is on the way */
	fake_stop(&r.k);
}

static void full_ring_makes_requests_wait(void **state)
{
	struct fake_flow *second;
	struct rig r;
	(void)state;

	rig_default(&r);
	second = rig_connect(&r);
	r.k.open_err = -EAGAIN;
	say(&r, POST "Content-Length: 3\r\n\r\nabc");
	fake_send(second, TEXT("GET /second HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
	fake_tick(&r.k, 3000);
	assert_int_equal(r.k.nb_opened, 0);
	assert_int_equal(r.c->out_len, 0);
	r.k.open_err = 0;
	fake_tick(&r.k, 200);
	assert_int_equal(r.k.nb_opened, 2);
	assert_int_equal(request(&r)->path_len, 7);   /* in order: the last one is the second */
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(second), 200);
	fake_stop(&r.k);

	rig_default(&r);   /* one that goes away while waiting, and the expectation of another */
	second = rig_connect(&r);
	r.k.open_err = -EAGAIN;
	say(&r, GET "\r\n");
	fake_send(second, TEXT(POST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"), 0);
	fake_reset(r.c, SL_ERROR_CLIENT);
	assert_int_equal(second->out_len, 0);
	r.k.open_err = 0;
	fake_tick(&r.k, 200);
	assert_int_equal(r.k.nb_opened, 1);
	assert_true(has(second, "100 Continue"));
	fake_stop(&r.k);
}

static void dead_instance(void **state)
{
	static const struct {
		const char *text;
		bool unseen;
		enum sl_request_status status;
		bool retried;
		int then;   /* without a retry */
	} rows[] = {
		{GET "\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{"DELETE /x HTTP/1.1\r\nHost: a\r\n\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{POST "Content-Length: 0\r\n\r\n", false, SL_ERROR_PEER_GONE, false, 502},
		{POST "Content-Length: 0\r\n\r\n", true, SL_ERROR_PEER_GONE, true, 0},
		{POST "Content-Length: 3\r\n\r\n", true, SL_ERROR_PEER_GONE, true, 0},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", false, SL_ERROR_PEER_GONE, true, 0},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", false, SL_ERROR_PEER_GONE, false, 502},
		{"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", true, SL_ERROR_PEER_GONE, false, 502},
		{POST "Content-Length: 0\r\n\r\n", false, SL_ERROR_REFUSED, true, 0},
		{POST "Content-Length: 3\r\n\r\na", false, SL_ERROR_REFUSED, false, 503},
		{GET "\r\n", false, SL_ERROR, false, 502},
		{GET "\r\n", false, SL_ERROR_TIMEOUT, false, 504},
	};
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		struct fake_flow *first;
		struct rig r;

		rig_default(&r);
		say(&r, rows[i].text);
		first = app(&r);
		first->flow.unseen = rows[i].unseen;
		fake_reset(first, rows[i].status);
		assert_int_equal(r.k.inst.counters[SL_CNT_RETRIED], rows[i].retried);
		if (rows[i].retried) {
			assert_int_equal(r.k.nb_opened, 2);
			assert_int_equal(r.c->out_len, 0);
			assert_int_equal(app(&r)->msg_len, first->msg_len);
			assert_memory_equal(app(&r)->msg, first->msg, first->msg_len);
			assert_int_equal(app(&r)->flow.request_id, first->flow.request_id);
			if (request(&r)->body_len) {
				say(&r, "xyz");
				assert_string_equal((const char *)app(&r)->out, "xyz");
			}
			fake_die(app(&r), true);   /* only once */
			assert_int_equal(r.k.nb_opened, 2);
			assert_int_equal(status_of(r.c), 502);
		} else if (status_of(r.c) != rows[i].then) {
			fail_msg("row %u: %s", i, r.c->out);
		}
		fake_stop(&r.k);
	}
}

static void death_within_the_answer_is_visible(void **state)
{
	uint8_t m[200];
	struct rig r;
	(void)state;

	for (int known = 0; known < 2; known++) {
		rig_default(&r);
		say(&r, GET "\r\n");
		fake_send(app(&r), m, message(m, 200, known ? 9 : UINT64_MAX, "", "hello", 5), 0);
		fake_die(app(&r), false);
		assert_int_equal(r.k.nb_opened, 1);
		assert_true(r.c->out_reset && !r.c->out_fin);
		fake_stop(&r.k);
	}
	rig_default(&r);   /* all of it had come */
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 5, "", "hello", 5), 0);
	fake_die(app(&r), false);
	assert_false(r.c->out_reset || r.c->out_fin);
	say(&r, GET "\r\n");
	assert_int_equal(r.k.nb_opened, 2);
	fake_stop(&r.k);
	/* part of a head does not count as an answer */
	rig_default(&r);
	say(&r, GET "\r\n");
	fake_send(app(&r), m, 20, 0);
	fake_die(app(&r), false);
	assert_int_equal(r.k.nb_opened, 2);
	answer(&r, 200, "", "x");
	assert_int_equal(status_of(r.c), 200);
	fake_stop(&r.k);
}

/* --- time ---------------------------------------------------------------------------------------------------------- */

static void slow_clients_are_timed_out(void **state)
{
	struct rig r;
	uint8_t m[200];
	(void)state;

	rig_default(&r);   /* idle: silently */
	fake_tick(&r.k, 4900);
	assert_false(r.c->out_fin);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_fin);
	assert_int_equal(r.c->out_len, 0);
	fake_tick(&r.k, 70000);   /* and who never closes its side is reset */
	assert_true(r.c->out_reset);
	assert_int_equal(r.k.inst.active_flows, 0);
	fake_stop(&r.k);

	rig_default(&r);   /* a head that trickles in */
	for (unsigned i = 0; i < 15 && !r.c->out_len; i++) {
		fake_send(r.c, "GET / HTTP/1.1\r\n" + i, 1, 0);
		fake_tick(&r.k, 100);
	}
	assert_int_equal(status_of(r.c), 408);
	assert_true(r.c->out_fin);
	assert_int_equal(r.k.inst.counters[SL_CNT_TIMEOUT], 1);
	fake_stop(&r.k);

	rig_default(&r);   /* a body that stops */
	say(&r, POST "Content-Length: 9\r\n\r\nabc");
	fake_tick(&r.k, 1900);
	say(&r, "d");
	fake_tick(&r.k, 1900);
	assert_int_equal(r.c->out_len, 0);
	fake_tick(&r.k, 300);
	assert_int_equal(status_of(r.c), 408);
	assert_true(r.c->out_fin && app(&r)->out_reset);
	assert_int_equal(app(&r)->out_status, SL_ERROR_TIMEOUT);
	fake_stop(&r.k);

	rig_default(&r);   /* a client that takes nothing */
	r.c->flow.tx_window = 50;
	say(&r, GET "\r\n");
	fake_send(app(&r), m, message(m, 200, 100, "", "hello", 5), 0);
	fake_tick(&r.k, 1900);
	fake_credit(r.c, 1);
	fake_tick(&r.k, 1900);
	assert_false(r.c->out_reset);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_reset && app(&r)->out_reset);
	fake_stop(&r.k);

	rig_default(&r);   /* waiting for the application is not the client's fault */
	say(&r, GET "\r\n");
	fake_tick(&r.k, 60000);
	assert_false(r.c->out_fin || r.c->out_reset);
	answer(&r, 200, "", "x");
	fake_tick(&r.k, 4900);
	assert_false(r.c->out_fin);
	fake_tick(&r.k, 300);
	assert_true(r.c->out_fin);
	fake_stop(&r.k);
}

static void trace_names_request_and_connection(void **state)
{
	static const enum sl_trace_point points[] = {SL_TRACE_IN, SL_TRACE_NEXT, SL_TRACE_BACK, SL_TRACE_OUT, SL_TRACE_DONE};
	struct rig r;
	(void)state;

	rig_default(&r);
	r.c->flow.traced = true;
	say(&r, GET "\r\n");
	assert_true(app(&r)->open_flags & SL_F_TRACE);
	answer(&r, 200, "", "x");
	assert_int_equal(r.k.nb_traces, 5);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(r.k.traces[i].point, points[i]);
		assert_int_equal(r.k.traces[i].request_id, app(&r)->flow.request_id);
		assert_int_equal(r.k.traces[i].parent, r.c->flow.request_id);
	}
	fake_stop(&r.k);

	rig_default(&r);
	r.k.inst.trace_every = 2;
	for (unsigned i = 0; i < 4; i++) {
		say(&r, GET "\r\n");
		assert_int_equal(!!(app(&r)->open_flags & SL_F_TRACE), i & 1);
		answer(&r, 200, "", "x");
	}
	fake_stop(&r.k);
}

static void date_is_right(void **state)
{
	static const struct {
		int64_t s;
		const char *text;
	} rows[] = {
		{0, "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"},
		{784111777, "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"},   /* the example of RFC 9110 */
		{951782399, "date: Mon, 28 Feb 2000 23:59:59 GMT\r\n"},
		{951782400, "date: Tue, 29 Feb 2000 00:00:00 GMT\r\n"},
		{4107542399, "date: Sun, 28 Feb 2100 23:59:59 GMT\r\n"},
		{4107542400, "date: Mon, 01 Mar 2100 00:00:00 GMT\r\n"},
		{1798761599, "date: Thu, 31 Dec 2026 23:59:59 GMT\r\n"},
	};
	char text[64];
	(void)state;

	for (unsigned i = 0; i < sl_nb(rows); i++) {
		sl_http_date_write(rows[i].s, text);
		assert_string_equal(text, rows[i].text);
	}
}

static void configuration_is_needed(void **state)
{
	struct sl_http_conf conf = {0};
	struct fake k;
	(void)state;

	fake_init(&k, &sl_layer_http);
	assert_int_equal(fake_start(&k), -EINVAL);
	assert_true(strlen(k.fail) > 0);
	fake_stop(&k);
	fake_init(&k, &sl_layer_http);
	fake_conf(&k, SL_CONF_HTTP, &conf, sizeof(conf) - 1);
	assert_int_equal(fake_start(&k), -EINVAL);
	fake_stop(&k);
}

static uint32_t below(uint32_t *x, size_t n)
{
	*x = *x * 1664525 + 1013904223;
	return (uint32_t)((*x >> 8) % n);
}

/* Random bytes made of likely pieces, random windows, slots, answers and deaths: nothing may crash, leak or hang (ASan, UBSan). */
static void noise(void **state)
{
	static const char *const pieces[] = {
		"GET / HTTP/1.1\r\n", "POST /a HTTP/1.1\r\n", "HEAD / HTTP/1.0\r\n", "Host: a\r\n", "\r\n", "\r", "\n", " ", ":", "Content-Length: 5\r\n",
		"Transfer-Encoding: chunked\r\n", "5\r\n", "0\r\n\r\n", "hello", "Expect: 100-continue\r\n", "Connection: close\r\n", "\0", "a",
		GET "\r\n", CHUNKED "3\r\nabc\r\n0\r\n\r\n", POST "Content-Length: 5\r\n\r\nhello",
	};
	uint32_t x = 12345;
	(void)state;

	for (unsigned round = 0; round < 1500; round++) {
		struct rig r;

		rig_default(&r);
		if (below(&x, 2))
			r.c->flow.tx_window = below(&x, 200);
		for (unsigned step = 0; step < 60; step++) {
			const char *piece = pieces[below(&x, sl_nb(pieces))];
			uint8_t m[300];
			uint32_t len, status, flags;
			uint64_t body_len;

			switch (below(&x, 8)) {
			case 0: case 1: case 2:
				fake_send(r.c, piece, strlen(piece) + !*piece, 0);
				break;
			case 3:
				if (!app(&r) || app(&r)->ended || app(&r)->flow.rx_fin)
					break;
				status = 100 + below(&x, 500);
				body_len = below(&x, 3) ? below(&x, 20) : UINT64_MAX;
				len = message(m, status, body_len, "a: b\n", "0123456789", below(&x, 11));
				flags = below(&x, 2) ? SL_F_FIN : 0;
				fake_send(app(&r), m + !below(&x, 5), len - 1, flags);
				break;
			case 4:
				fake_credit(r.c, below(&x, 64));
				break;
			case 5:
				r.k.window = below(&x, 3) ? 1000 : below(&x, 10);
				r.k.open_err = below(&x, 4) ? 0 : below(&x, 2) ? -EAGAIN : -ENETUNREACH;
				if (app(&r))
					fake_credit(app(&r), below(&x, 64));
				break;
			case 6:
				if (app(&r) && !below(&x, 4))
					fake_die(app(&r), below(&x, 2));
				else if (!below(&x, 20))
					fake_reset(r.c, SL_ERROR_CLIENT);
				break;
			default:
				fake_tick(&r.k, below(&x, 500));
				if (!below(&x, 10) && !r.c->flow.rx_fin)
					fake_send(r.c, NULL, 0, SL_F_FIN);
			}
			if (r.c->ended || r.c->flow.rx_fin)
				break;
		}
		fake_stop(&r.k);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(get_is_passed_on_and_answered),
		cmocka_unit_test(bad_heads_are_refused),
		cmocka_unit_test(long_heads_are_refused),
		cmocka_unit_test(bad_chunks_are_refused),
		cmocka_unit_test(good_requests_do_not_depend_on_cuts),
		cmocka_unit_test(targets_are_split),
		cmocka_unit_test(pipelined_requests_run_one_by_one),
		cmocka_unit_test(keep_alive_follows_the_client),
		cmocka_unit_test(requests_and_connections_are_limited),
		cmocka_unit_test(half_closed_client_gets_its_answer),
		cmocka_unit_test(client_gone_ends_the_request),
		cmocka_unit_test(drain_closes_after_the_next_answer),
		cmocka_unit_test(unknown_length_is_chunked_or_closed),
		cmocka_unit_test(some_answers_have_no_body),
		cmocka_unit_test(head_in_pieces),
		cmocka_unit_test(length_must_be_kept),
		cmocka_unit_test(hostile_answers_become_502),
		cmocka_unit_test(overlapping_fields_are_bounded),
		cmocka_unit_test(empty_answer_is_502),
		cmocka_unit_test(expect_is_answered),
		cmocka_unit_test(body_waits_for_the_next_layer),
		cmocka_unit_test(tiny_chunks_share_a_slot),
		cmocka_unit_test(answer_waits_for_the_client),
		cmocka_unit_test(errors_wait_for_the_client),
		cmocka_unit_test(bodies_of_megabytes_pass_unchanged),
		cmocka_unit_test(echo_streams_both_ways),
		cmocka_unit_test(chunked_body_above_the_limit),
		cmocka_unit_test(early_answer),
		cmocka_unit_test(no_route_is_503),
		cmocka_unit_test(full_ring_makes_requests_wait),
		cmocka_unit_test(dead_instance),
		cmocka_unit_test(death_within_the_answer_is_visible),
		cmocka_unit_test(slow_clients_are_timed_out),
		cmocka_unit_test(trace_names_request_and_connection),
		cmocka_unit_test(date_is_right),
		cmocka_unit_test(configuration_is_needed),
		cmocka_unit_test(noise),
	};

	if (argc > 1)   /* name of one test */
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
