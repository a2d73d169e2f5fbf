/* SPDX-License-Identifier: Apache-2.0 */
/* The layer http: what it must not accept. */
#include "http_rig.h"

/* --- what is refused --- */

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
	{"chunked after another field", 
	 TEXT(POST "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
	{"xchunked", TEXT(POST "Transfer-Encoding: xchunked\r\n\r\n"), 400},
	{"chunked with parameter", TEXT(POST "Transfer-Encoding: chunked;a=b\r\n\r\n"), 400},
	{"quoted chunked", TEXT(POST "Transfer-Encoding: \"chunked\"\r\n\r\n"), 400},
	{"chunked with vertical tab", TEXT(POST "Transfer-Encoding: \013chunked\r\n\r\n"), 400},
	{"chunked with comma", TEXT(POST "Transfer-Encoding: ,chunked\r\n\r\n"), 400},
	{"empty TE", TEXT(POST "Transfer-Encoding:\r\n\r\n"), 400},
	{"chunked in 1.0", TEXT("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400},
	{"unknown expectation", TEXT(POST "Content-Length: 3\r\nExpect: 200-maybe\r\n\r\n"), 417},
	{"Connection with bad member", TEXT(GET "Connection: a b\r\n\r\n"), 400},
	{"too many fields",
	 TEXT(GET "1:\r\n2:\r\n3:\r\n4:\r\n5:\r\n6:\r\n7:\r\n8:\r\n9:\r\n10:\r\n11:\r\n12:\r\n13:\r\n14:\r\n15:\r\n"
	      "16:\r\n17:\r\n18:\r\n19:\r\n20:\r\n\r\n"), 431},
};

/* The client must get this status, then FIN; nothing reaches the next layer. */
static void refused(const char *name, const char *text, size_t len, int status, size_t step)
{
	struct rig r;

	rig_default(&r);
	for (size_t at = 0; at < len; at += step)
		fake_send(r.c, text + at, sl_min(step, len - at), 0);
	if (status_of(r.c) != status || !r.c->out_fin || r.k.nb_opened || !has(r.c, "\r\nconnection: close\r\n"))
		fail_msg("%s (step %zu): want %d, got %d fin %d opened %u: %s", name, step, status, status_of(r.c),
			 r.c->out_fin, r.k.nb_opened, r.c->out);
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
	many = (struct bad){"trailers without end", text, 0, 431};
	many.len = (size_t)snprintf(text, sizeof(text), "0\r\nX: %08500d", 0);
	bad_chunk_refused(&many, many.len);
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

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_heads_are_refused),
		cmocka_unit_test(long_heads_are_refused),
		cmocka_unit_test(bad_chunks_are_refused),
		cmocka_unit_test(configuration_is_needed),
	};

	RUN_TESTS(tests);
}
