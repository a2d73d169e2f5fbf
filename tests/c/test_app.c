/* SPDX-License-Identifier: Apache-2.0 */
/* What the layer app answers to which request. */
#include "app_rig.h"

static void test_paths(void **state)
{
	static const struct row rows[] = {
		{GET, "/hello.txt", NULL, 200, "content-type: text/plain; charset=utf-8", "0123456789"},
		{GET, "/hello.txt?x=../..", NULL, 200, "accept-ranges: bytes", "0123456789"},
		{GET, "/h%65llo%2etxt", NULL, 200, "last-modified: Sun, 06 Nov 1994 08:49:37 GMT", "0123456789"},
		{HEAD, "/hello.txt", NULL, 200, "content-type: text/plain; charset=utf-8", ""},
		{GET, "/none", NULL, 200, "content-type: application/octet-stream", ""},
		{GET, "/", NULL, 200, "content-type: text/html; charset=utf-8", "<p>top\n"},
		{GET, "//", NULL, 200, NULL, "<p>top\n"},
		{GET, "/./", NULL, 200, NULL, "<p>top\n"},
		{GET, "/sub/", NULL, 200, NULL, "<p>sub\n"},
		{GET, "//sub///index.html", NULL, 200, NULL, "<p>sub\n"},
		{GET, "/sub/.", NULL, 200, NULL, "<p>sub\n"},
		{GET, "/sub", NULL, 301, "location: /sub/", NULL},
		{HEAD, "/sub", NULL, 301, "location: /sub/", ""},
		{GET, "//sub", NULL, 301, "location: /sub/", NULL},
		{GET, "/sub?a=b&c", NULL, 301, "location: /sub/?a=b&c", NULL},
		{GET, "/a%20b", NULL, 301, "location: /a%20b/", NULL},
		{GET, "/a%20b/%C3%BC%25.json", NULL, 200, "content-type: application/json", "{}"},
		{GET, "/empty/", NULL, 404, "content-type: text/plain; charset=utf-8", "404 Not Found\n"},
		{HEAD, "/missing", NULL, 404, NULL, ""},
		{GET, "/hello.txt/", NULL, 404, NULL, NULL},
		{GET, "/hello.txt/x", NULL, 404, NULL, NULL},
		{GET, "/inside", NULL, 200, NULL, "0123456789"},
		{GET, "/fifo", NULL, 403, NULL, NULL},
		{GET, "/self", NULL, 404, NULL, NULL},
		{SL_HTTP_POST, "/hello.txt", NULL, 405, "allow: GET, HEAD", NULL},
		{SL_HTTP_OTHER, "/hello.txt", NULL, 405, "allow: GET, HEAD", NULL},
		{SL_HTTP_OPTIONS, "*", NULL, 405, "allow: GET, HEAD", NULL},
		{99, "/", NULL, 405, "allow: GET, HEAD", NULL},
		{GET, "/echo", NULL, 405, "allow: POST, PUT", NULL},
		{GET, "*", NULL, 400, NULL, NULL},
	};

	rows_check(*state, rows, sl_nb(rows));
}

static void test_nothing_outside_the_root(void **state)
{
	static const struct row rows[] = {
		{GET, "/..", NULL, 400, NULL, NULL},
		{GET, "/../secret.txt", NULL, 400, NULL, NULL},
		{GET, "/sub/../../secret.txt", NULL, 400, NULL, NULL},
		{GET, "/%2e%2e/secret.txt", NULL, 400, NULL, NULL},
		{GET, "/.%2E/secret.txt", NULL, 400, NULL, NULL},
		{GET, "/sub/..%2f..%2fsecret.txt", NULL, 400, NULL, NULL},
		{GET, "/..%5csecret.txt", NULL, 404, NULL, NULL},
		{GET, "/%252e%252e/secret.txt", NULL, 404, NULL, NULL},
		{GET, "/out-relative", NULL, 404, NULL, "404 Not Found\n"},
		{GET, "/out-absolute", NULL, 404, NULL, "404 Not Found\n"},
		{GET, "/out-folder", NULL, 404, NULL, NULL},
		{GET, "/out-folder/", NULL, 404, NULL, NULL},
		{GET, "/out-folder/secret.txt", NULL, 404, NULL, NULL},
		{GET, "/loop/loop/loop/hello.txt", NULL, 404, NULL, NULL},
		{GET, "/hello.txt%00.html", NULL, 400, NULL, NULL},
		{GET, "/sub%2findex.html", NULL, 400, NULL, NULL},
		{GET, "/%", NULL, 400, NULL, NULL},
		{GET, "/%4", NULL, 400, NULL, NULL},
		{GET, "/%zz", NULL, 400, NULL, NULL},
		{GET, "hello.txt", NULL, 400, NULL, NULL},
		{GET, "", NULL, 400, NULL, NULL},
		{GET, "//example.org", NULL, 404, "-location", NULL},
	};

	rows_check(*state, rows, sl_nb(rows));
}

static void test_long_paths(void **state)
{
	struct world *w = *state;
	char path[6000] = "/", name[128];
	struct row r = {GET, path, NULL, 404, NULL, NULL};

	memset(path + 1, 'a', 254);
	row_check(w, &r);
	memset(path + 1, 'a', 4094);   /* decoded so long a path is possible, a name is not */
	row_check(w, &r);
	path[4095] = path[4096] = 'a';
	r.status = 414;
	row_check(w, &r);
	for (unsigned i = 1; i + 3 < sizeof(path); i += 3)
		memcpy(path + i, "%61", 3);
	r.status = 404;
	row_check(w, &r);
	memset(path, 0, sizeof(path));
	memset(path, '/', 5000);       /* only empty segments: the top */
	r.status = 200;
	row_check(w, &r);
	/* with the name of the index it just fits; and is too long by one */
	memset(path, 'a', sizeof(path));
	path[0] = path[1 + 4084] = '/';
	path[1 + 4085] = 0;
	r.status = 404;
	row_check(w, &r);
	path[1 + 4084] = 'a';
	path[1 + 4085] = '/';
	path[1 + 4086] = 0;
	r.status = 414;
	row_check(w, &r);
	/* a redirect that would not fit */
	memset(name, 'n', sizeof(name));
	memcpy(name, "root/", 5);
	name[127] = 0;
	folder_make(w, name);
	snprintf(path, sizeof(path), "/%s", name + 5);
	r.status = 301;
	row_check(w, &r);
	memset(path + 1 + 122, 'q', 700);
	path[1 + 122] = '?';
	path[1 + 122 + 700] = 0;
	r.status = 414;
	row_check(w, &r);
}

/* The entity tag that hello.txt has here */
static void etag_get(struct world *w, char *etag, size_t len)
{
	struct fake_flow *ff = request_send(w, GET, "/hello.txt", NULL);
	struct answer a;

	answer_read(ff, &a);
	snprintf(etag, len, "%s", field_of(&a, "etag"));
	assert_true(etag[0] == '"' && etag[strlen(etag) - 1] == '"');
	w->k.inst.requests = 0;
	memset(w->k.inst.latency, 0, sizeof(w->k.inst.latency));
}

static void test_conditions(void **state)
{
	static const char same[] = "Sun, 06 Nov 1994 08:49:37 GMT", before[] = "Sun, 06 Nov 1994 08:49:36 GMT";
	char etag[64], f[32][256];
	unsigned n = 0;

	etag_get(*state, etag, sizeof(etag));
#define FIELDS(...) (snprintf(f[n], sizeof(f[n]), __VA_ARGS__), f[n++])
	const struct row rows[] = {
		{GET, "/hello.txt", FIELDS("if-none-match: %s\n", etag), 304, FIELDS("etag: %s", etag), ""},
		{HEAD, "/hello.txt", FIELDS("if-none-match: \"x\", W/%s\n", etag), 304, "-content-type", ""},
		{GET, "/hello.txt", FIELDS("if-none-match: \"a\"\nif-none-match: \"b\",%s\n", etag), 304, NULL, ""},
		{GET, "/hello.txt", "if-none-match: *\n", 304, NULL, ""},
		{GET, "/missing", "if-none-match: *\n", 404, NULL, NULL},
		{GET, "/hello.txt", "if-none-match: \"a\", \"b\"\n", 200, NULL, "0123456789"},
		{GET, "/hello.txt", "if-none-match: nonsense\n", 200, NULL, "0123456789"},
		{GET, "/hello.txt", FIELDS("if-none-match: \"x\"\nif-modified-since: %s\n", same), 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-modified-since: %s\n", same), 304, NULL, ""},
		{GET, "/hello.txt", "if-modified-since: Sunday, 06-Nov-94 08:49:37 GMT\n", 304, NULL, ""},
		{GET, "/hello.txt", "if-modified-since: Sun Nov  6 08:49:37 1994\n", 304, NULL, ""},
		{GET, "/hello.txt", FIELDS("if-modified-since: %s\n", before), 200, NULL, NULL},
		{GET, "/hello.txt", "if-modified-since: yesterday\n", 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-match: %s\n", etag), 200, NULL, NULL},
		{GET, "/hello.txt", "if-match: *\n", 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-match: W/%s\n", etag), 412, NULL, "412 Precondition Failed\n"},
		{GET, "/hello.txt", "if-match: \"a\"\n", 412, NULL, NULL},
		{HEAD, "/hello.txt", "if-match: \"a\"\n", 412, NULL, ""},
		{GET, "/hello.txt", FIELDS("if-match: \"a\"\nif-match: %s\n", etag), 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-match: %s\nif-unmodified-since: %s\n", etag, before), 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-unmodified-since: %s\n", same), 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-unmodified-since: %s\n", before), 412, NULL, NULL},
		{GET, "/hello.txt", "if-unmodified-since: Sunday, 06-Nov-94 08:49:36 GMT\n", 412, NULL, NULL},
		{GET, "/hello.txt", "if-unmodified-since: Sunday, 06-Nov-44 08:49:36 GMT\n", 200, NULL, NULL},
		{GET, "/hello.txt", "if-unmodified-since: soon\n", 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("if-match: %s\nif-none-match: %s\n", etag, etag), 304, NULL, ""},
	};

	rows_check(*state, rows, sl_nb(rows));
}

static void test_ranges(void **state)
{
	static const char same[] = "Sun, 06 Nov 1994 08:49:37 GMT", before[] = "Sun, 06 Nov 1994 08:49:36 GMT";
	char etag[64], f[32][256];
	unsigned n = 0;

	etag_get(*state, etag, sizeof(etag));
	const struct row rows[] = {
		{GET, "/hello.txt", "range: bytes=0-0\n", 206, "content-range: bytes 0-0/10", "0"},
		{GET, "/hello.txt", "range: bytes=2-4\n", 206, "content-range: bytes 2-4/10", "234"},
		{GET, "/hello.txt", "range: Bytes=7-\n", 206, "content-range: bytes 7-9/10", "789"},
		{GET, "/hello.txt", "range: bytes=-3\n", 206, "content-range: bytes 7-9/10", "789"},
		{GET, "/hello.txt", "range: bytes=-99\n", 206, "content-range: bytes 0-9/10", "0123456789"},
		{GET, "/hello.txt", "range: bytes=5-99999999999999999999\n", 206, "content-range: bytes 5-9/10", NULL},
		{GET, "/hello.txt", "range: bytes=0-9\n", 206, "content-type: text/plain; charset=utf-8", "0123456789"},
		{GET, "/hello.txt", "range: bytes=10-\n", 416, "-etag", "416 Range Not Satisfiable\n"},
		{GET, "/hello.txt", "range: bytes=99999999999999999999999-\n", 416, "content-range: bytes */10", NULL},
		{GET, "/hello.txt", "range: bytes=-0\n", 416, "content-range: bytes */10", NULL},
		{GET, "/hello.txt", "range: bytes=0-1,3-4\n", 200, "-content-range", "0123456789"},
		{GET, "/hello.txt", "range: bytes=0-1\nrange: bytes=3-4\n", 200, "-content-range", "0123456789"},
		{GET, "/hello.txt", "range: bytes=4-2\n", 200, "-content-range", NULL},
		{GET, "/hello.txt", "range: bytes=-\n", 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=\n", 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=a-b\n", 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=1-2x\n", 200, NULL, NULL},
		{GET, "/hello.txt", "range: lines=1-2\n", 200, NULL, NULL},
		{HEAD, "/hello.txt", "range: bytes=2-4\n", 200, "-content-range", ""},
		{GET, "/none", "range: bytes=0-\n", 416, "content-range: bytes */0", NULL},
		{GET, "/none", "range: bytes=-5\n", 200, NULL, ""},
		{GET, "/hello.txt", FIELDS("range: bytes=2-4\nif-range: %s\n", etag), 206, FIELDS("etag: %s", etag),
		 "234"},
		{GET, "/hello.txt", FIELDS("range: bytes=2-4\nif-range: W/%s\n", etag), 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=2-4\nif-range: \"x\"\n", 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=2-4\nif-range: *\n", 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("range: bytes=2-4\nif-range: %s\n", same), 206, NULL, "234"},
		{GET, "/hello.txt", FIELDS("range: bytes=2-4\nif-range: %s\n", before), 200, NULL, NULL},
		{GET, "/hello.txt", "range: bytes=99-\nif-range: \"x\"\n", 200, NULL, NULL},
		{GET, "/hello.txt", FIELDS("range: bytes=2-4\nif-none-match: %s\n", etag), 304, NULL, ""},
		{GET, "/hello.txt", "range: bytes=2-4\nif-match: \"x\"\n", 412, NULL, NULL},
	};

	rows_check(*state, rows, sl_nb(rows));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_paths), T(test_nothing_outside_the_root), T(test_long_paths), T(test_conditions),
		T(test_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
