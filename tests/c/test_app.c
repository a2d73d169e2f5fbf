/* SPDX-License-Identifier: Apache-2.0 */
/* The app layer over a fake of the flow library: what is answered to which request, and that nothing hostile gets
 * through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "abi/http.h"
#include "fake_flow.h"

extern const struct sl_layer sl_layer_app;

enum { MTIME = 784111777 };   /* Sun, 06 Nov 1994 08:49:37 GMT */

struct world {
	struct fake k;
	struct sl_app_conf conf;
	char dir[64];            /* root is dir/root, so that there is something outside it */
};

/* --- the folder --- */

static void file_write(const struct world *w, const char *name, const void *p, size_t len)
{
	struct timespec times[2] = {{.tv_sec = MTIME}, {.tv_sec = MTIME}};
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, p, len), len);
	assert_int_equal(futimens(fd, times), 0);
	close(fd);
}

static void folder_make(const struct world *w, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	assert_int_equal(mkdir(path, 0755), 0);
}

static void link_make(const struct world *w, const char *target, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", w->dir, name);
	assert_int_equal(symlink(target, path), 0);
}

static uint8_t big_byte(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

enum { BIG_LEN = 300000 };

static void folder_fill(const struct world *w)
{
	uint8_t *big = malloc(BIG_LEN);

	for (size_t i = 0; i < BIG_LEN; i++)
		big[i] = big_byte(i);
	folder_make(w, "root");
	folder_make(w, "root/sub");
	folder_make(w, "root/empty");
	folder_make(w, "root/a b");
	folder_make(w, "root/loop");
	file_write(w, "secret.txt", "outside\n", 8);
	file_write(w, "root/index.html", "<p>top\n", 7);
	file_write(w, "root/hello.txt", "0123456789", 10);
	file_write(w, "root/none", "", 0);
	file_write(w, "root/sub/index.html", "<p>sub\n", 7);
	file_write(w, "root/a b/ü%.json", "{}", 2);
	file_write(w, "root/big.bin", big, BIG_LEN);
	link_make(w, "../secret.txt", "root/out-relative");
	link_make(w, "/etc/passwd", "root/out-absolute");
	link_make(w, "..", "root/out-folder");
	link_make(w, "sub/../hello.txt", "root/inside");
	link_make(w, "loop", "root/loop/loop");
	link_make(w, "self", "root/self");
	free(big);
}

static int world_open(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char fifo[128];

	strcpy(w->dir, "/tmp/sl-test-app-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	folder_fill(w);
	snprintf(fifo, sizeof(fifo), "%s/root/fifo", w->dir);
	assert_int_equal(mkfifo(fifo, 0644), 0);
	w->conf.echo = 1;
	w->conf.max_requests = 4;
	snprintf((char *)w->conf.root, sizeof(w->conf.root), "%s/root", w->dir);
	strcpy((char *)w->conf.index, "index.html");
	fake_init(&w->k, &sl_layer_app);
	w->k.window = SL_FLOW_WINDOW;
	fake_conf(&w->k, SL_CONF_APP, &w->conf, sizeof(w->conf));
	assert_int_equal(fake_start(&w->k), 0);
	*state = w;
	return 0;
}

static int world_close(void **state)
{
	struct world *w = *state;
	char cmd[128];

	fake_stop(&w->k);
	assert_int_equal(w->k.inst.active_flows, 0);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", w->dir);
	assert_int_equal(system(cmd), 0);
	free(w);
	return 0;
}

/* --- requests --- */

struct message {
	uint8_t data[SL_HTTP_HEAD_MAX];
	uint32_t len;
};

static uint16_t text_put(struct message *m, const char *s, size_t len)
{
	uint32_t off = m->len;

	assert_true(off + len <= sizeof(m->data));
	memcpy(m->data + off, s, len);
	m->len += (uint32_t)len;
	return (uint16_t)off;
}

/* fields: "name: value\n" repeated, NULL for none */
static struct sl_http_request *message_make(struct message *m, uint8_t method, const char *target, const char *fields,
					    uint64_t body_len)
{
	struct sl_http_request *r = (void *)m->data;
	struct sl_http_field *f = (void *)(r + 1);
	const char *query = strchr(target, '?'), *name = "X";

	memset(m, 0, sizeof(*m));
	r->magic = SL_HTTP_MAGIC;
	r->method = method;
	r->body_len = body_len;
	r->version_minor = 1;
	for (const char *p = fields; p && *p; p = strchr(p, '\n') + 1)
		r->nb_fields++;
	m->len = (uint32_t)(sizeof(*r) + r->nb_fields * sizeof(*f));
	r->method_len = 1;
	r->method_off = text_put(m, name, 1);
	r->path_len = (uint16_t)(query ? query - target : (long)strlen(target));
	r->path_off = text_put(m, target, r->path_len);
	if (query) {
		r->query_len = (uint16_t)strlen(query + 1);
		r->query_off = text_put(m, query + 1, r->query_len);
	}
	for (const char *p = fields; p && *p; p = strchr(p, '\n') + 1, f++) {
		const char *colon = strchr(p, ':');

		f->name_len = (uint16_t)(colon - p);
		f->name_off = text_put(m, p, f->name_len);
		f->value_len = (uint16_t)(strchr(p, '\n') - colon - 2);
		f->value_off = text_put(m, colon + 2, f->value_len);
	}
	r->head_len = (uint16_t)m->len;
	return r;
}

static struct fake_flow *request_send(struct world *w, uint8_t method, const char *target, const char *fields)
{
	struct message m;
	struct fake_flow *ff;

	message_make(&m, method, target, fields, 0);
	ff = fake_open(&w->k, m.data, m.len, SL_F_FIN, NULL);
	assert_non_null(ff);
	return ff;
}

/* --- answers --- */

struct answer {
	struct sl_http_response r;
	char fields[2048];       /* "name: value\n" repeated */
	const uint8_t *body;
	size_t body_len;
};

static void answer_read(const struct fake_flow *ff, struct answer *a)
{
	const struct sl_http_field *f = (const void *)(ff->out + sizeof(a->r));
	size_t pos = 0;

	memset(a, 0, sizeof(*a));
	assert_true(ff->out_len >= sizeof(a->r));
	memcpy(&a->r, ff->out, sizeof(a->r));
	assert_int_equal(a->r.magic, SL_HTTP_MAGIC);
	assert_true(a->r.head_len <= ff->out_len && a->r.head_len >= sizeof(a->r) + a->r.nb_fields * sizeof(*f));
	for (unsigned i = 0; i < a->r.nb_fields; i++, f++) {
		assert_true(f->name_off + f->name_len <= a->r.head_len && f->value_off + f->value_len <= a->r.head_len);
		pos += (size_t)snprintf(a->fields + pos, sizeof(a->fields) - pos, "%.*s: %.*s\n", f->name_len,
					ff->out + f->name_off, f->value_len, ff->out + f->value_off);
	}
	a->body = ff->out + a->r.head_len;
	a->body_len = ff->out_len - a->r.head_len;
}

static const char *field_of(const struct answer *a, const char *name)
{
	static char value[1024];
	const char *p = a->fields;
	char start[64];

	snprintf(start, sizeof(start), "%s: ", name);
	for (; *p; p = strchr(p, '\n') + 1) {
		if (strncmp(p, start, strlen(start)))
			continue;
		p += strlen(start);
		snprintf(value, sizeof(value), "%.*s", (int)(strchr(p, '\n') - p), p);
		return value;
	}
	return NULL;
}

struct row {
	uint8_t method;
	const char *target, *fields;
	unsigned status;
	const char *field;       /* "name: value" that the answer has, "-name" that it has not, NULL: not looked at */
	const char *body;        /* NULL: not looked at */
};

static void row_check(struct world *w, const struct row *r)
{
	struct fake_flow *ff = request_send(w, r->method, r->target, r->fields);
	struct answer a;
	char line[1100];

	answer_read(ff, &a);
	if (a.r.status != r->status)
		fail_msg("%.99s [%s]: status %u, not %u", r->target, r->fields ? r->fields : "", a.r.status, r->status);
	assert_true(ff->out_fin && !ff->out_reset);
	assert_int_equal(ff->nb_commits, 1);   /* head and body in one slot */
	if (r->field && *r->field == '-') {
		if (field_of(&a, r->field + 1))
			fail_msg("%s: has %s", r->target, r->field + 1);
	} else if (r->field) {
		snprintf(line, sizeof(line), "%s\n", r->field);
		if (!strstr(a.fields, line))
			fail_msg("%s [%s]: %s not in\n%s", r->target, r->fields ? r->fields : "", r->field, a.fields);
	}
	if (r->body && (a.body_len != strlen(r->body) || memcmp(a.body, r->body, a.body_len)))
		fail_msg("%s: body is %.*s", r->target, (int)a.body_len, a.body);
	if (r->method != SL_HTTP_HEAD && a.r.status != 304)
		assert_int_equal(a.r.body_len, a.body_len);
}

static void rows_check(struct world *w, const struct row *rows, size_t nb)
{
	for (size_t i = 0; i < nb; i++)
		row_check(w, &rows[i]);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.requests, nb);
}

#define GET SL_HTTP_GET
#define HEAD SL_HTTP_HEAD

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

/* --- bodies --- */

static void big_check(const struct fake_flow *ff, size_t from, size_t to)
{
	struct answer a;

	answer_read(ff, &a);
	assert_int_equal(a.r.body_len, to - from);
	assert_int_equal(a.body_len, to - from);
	for (size_t i = from; i < to; i++) {
		if (a.body[i - from] != big_byte(i))
			fail_msg("byte %zu is wrong", i);
	}
}

static void test_big_file_with_little_room(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff, *range;

	ff = request_send(w, GET, "/big.bin", NULL);
	assert_int_equal(ff->out_len, SL_FLOW_WINDOW);   /* no more than the window */
	range = request_send(w, GET, "/big.bin", "range: bytes=1000-298999\n");
	assert_int_equal(w->k.inst.active_flows, 2);
	for (unsigned i = 1; !ff->out_fin || !range->out_fin; i++) {
		assert_true(i < 100000);
		fake_credit(i % 2 ? ff : range, i % 977 + 1);
		if (i % 50 == 0)
			fake_slots(&w->k, i % 100 ? 0 : UINT32_MAX);   /* the arena runs dry in between */
	}
	fake_slots(&w->k, UINT32_MAX);
	big_check(ff, 0, BIG_LEN);
	big_check(range, 1000, 299000);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.bytes_out, BIG_LEN + 298000);
}

static void test_no_slot_at_first(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff;
	struct answer a;

	fake_slots(&w->k, 0);
	ff = request_send(w, GET, "/hello.txt", NULL);
	assert_int_equal(ff->out_len, 0);
	fake_slots(&w->k, UINT32_MAX);
	assert_true(ff->out_fin);
	answer_read(ff, &a);
	assert_int_equal(a.r.status, 200);
	assert_int_equal(ff->nb_commits, 1);
}

static void test_file_shrinks(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff = request_send(w, GET, "/big.bin", NULL);

	file_write(w, "root/big.bin", "short", 5);
	fake_credit(ff, SL_FLOW_WINDOW);
	assert_true(ff->out_reset && !ff->out_fin);
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void body_expect(struct world *w, const char *target, const char *body)
{
	struct fake_flow *ff = request_send(w, GET, target, NULL);
	struct answer a;

	answer_read(ff, &a);
	assert_int_equal(a.body_len, strlen(body));
	assert_memory_equal(a.body, body, a.body_len);
}

static void test_replaced_file_is_seen(void **state)
{
	struct world *w = *state;
	char from[128], to[128];

	body_expect(w, "/hello.txt", "0123456789");
	file_write(w, "root/new", "NEW", 3);
	snprintf(from, sizeof(from), "%s/root/new", w->dir);
	snprintf(to, sizeof(to), "%s/root/hello.txt", w->dir);
	assert_int_equal(rename(from, to), 0);
	body_expect(w, "/hello.txt", "0123456789");   /* at most one second old */
	fake_tick(&w->k, 1100);
	body_expect(w, "/hello.txt", "NEW");
	unlink(to);
	fake_tick(&w->k, 1100);
	body_expect(w, "/hello.txt", "404 Not Found\n");
}

static unsigned nb_open_files(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void test_open_files_are_bounded(void **state)
{
	struct world *w = *state;
	unsigned before = nb_open_files();
	char name[32];

	for (int i = 0; i < 200; i++) {
		snprintf(name, sizeof(name), "root/f%d", i);
		file_write(w, name, name, strlen(name));
	}
	for (int i = 0; i < 600; i++) {
		snprintf(name, sizeof(name), "root/f%d", i * 7 % 200);
		body_expect(w, name + 4, name);
		w->k.inst.now_ns += 1000000;
	}
	assert_int_equal(nb_open_files(), before + 64);
}

/* --- echo --- */

/* One echo, its answer checked while it comes */
struct echo {
	struct fake_flow *ff;
	size_t sent, got;
	uint64_t announced;      /* by the answer */
	char type[64];
};

static void echo_take(struct echo *e)
{
	const uint8_t *p = e->ff->out;
	size_t n = e->ff->out_len;

	if (!e->type[0] && n > 200) {   /* the head is whole */
		struct answer a;

		answer_read(e->ff, &a);
		assert_int_equal(a.r.status, 200);
		e->announced = a.r.body_len;
		snprintf(e->type, sizeof(e->type), "%s", field_of(&a, "content-type"));
		p = a.body;
		n = a.body_len;
	}
	if (!e->type[0])
		return;
	for (size_t i = 0; i < n; i++) {
		if (p[i] != big_byte(e->got + i))
			fail_msg("byte %zu is wrong", e->got + i);
	}
	e->got += n;
	fake_out_drop(e->ff);
}

static void echo_send(struct echo *e, size_t len, uint32_t flags)
{
	uint8_t piece[16384];

	for (size_t i = 0; i < len; i++)
		piece[i] = big_byte(e->sent + i);
	e->sent += len;
	fake_send(e->ff, piece, len, flags);
}

static void echo_open(struct world *w, struct echo *e, uint8_t method, const char *fields, uint64_t body_len)
{
	struct message m;

	memset(e, 0, sizeof(*e));
	w->k.window = 300;
	message_make(&m, method, "/echo", fields, body_len);
	e->ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	assert_non_null(e->ff);
	assert_int_equal(e->ff->out_len, 0);   /* not before the body */
}

enum { ECHO_LEN = 5 * 1024 * 1024 };

static void test_echo_5_mib_known_length(void **state)
{
	struct world *w = *state;
	struct echo e;

	echo_open(w, &e, SL_HTTP_POST, "content-type: x/y\n", ECHO_LEN);
	while (!e.ff->out_fin) {
		size_t n = sl_min((size_t)16384, ECHO_LEN - e.sent);

		if (n && !fake_backlog(e.ff))
			echo_send(&e, n, e.sent + n == ECHO_LEN ? SL_F_FIN : 0);
		fake_credit(e.ff, 1777);
		assert_false(e.ff->out_reset);
		echo_take(&e);
	}
	assert_int_equal(e.got, ECHO_LEN);
	assert_int_equal(e.announced, ECHO_LEN);
	assert_string_equal(e.type, "x/y");
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.bytes_in, ECHO_LEN);
	assert_int_equal(w->k.inst.bytes_out, ECHO_LEN);
}

static void test_echo_5_mib_unknown_length(void **state)
{
	struct world *w = *state;
	struct echo e;

	echo_open(w, &e, SL_HTTP_PUT, "content-type: evil\x01\n", UINT64_MAX);
	while (e.sent < ECHO_LEN) {
		echo_send(&e, 4096, 0);
		while (fake_backlog(e.ff)) {
			fake_credit(e.ff, 211);
			echo_take(&e);
		}
	}
	assert_int_equal(e.got, ECHO_LEN);
	assert_false(e.ff->out_fin);
	fake_send(e.ff, NULL, 0, SL_F_FIN);
	assert_true(e.ff->out_fin && !e.ff->out_reset);
	assert_true(e.announced == UINT64_MAX);
	assert_string_equal(e.type, "application/octet-stream");
}

static void test_echo_empty(void **state)
{
	static const struct row rows[] = {
		{SL_HTTP_POST, "/echo", NULL, 200, "content-type: application/octet-stream", ""},
		{SL_HTTP_PUT, "/echo", "content-type: a/b\n", 200, "content-type: a/b", ""},
		{SL_HTTP_DELETE, "/echo", NULL, 405, "allow: POST, PUT", NULL},
	};
	struct world *w = *state;
	struct message m;
	struct fake_flow *ff;

	rows_check(w, rows, sl_nb(rows));
	/* the end comes later, without a byte */
	message_make(&m, SL_HTTP_POST, "/echo", NULL, UINT64_MAX);
	ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	assert_int_equal(ff->out_len, 0);
	fake_slots(&w->k, 0);
	fake_send(ff, NULL, 0, SL_F_FIN);
	assert_false(ff->out_fin);
	fake_slots(&w->k, UINT32_MAX);
	assert_true(ff->out_fin && ff->ended);
}

static void test_unwanted_body_is_thrown_away(void **state)
{
	struct world *w = *state;
	struct message m;
	struct fake_flow *ff;
	uint8_t piece[1000] = {0};
	struct answer a;

	message_make(&m, SL_HTTP_POST, "/hello.txt", NULL, 100000);
	ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	answer_read(ff, &a);
	assert_int_equal(a.r.status, 405);
	assert_true(ff->out_fin);
	for (int i = 0; i < 100; i++) {
		assert_int_equal(w->k.inst.active_flows, 1);
		fake_send(ff, piece, sizeof(piece), i == 99 ? SL_F_FIN : 0);
		assert_int_equal(fake_backlog(ff), 0);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_false(ff->out_reset);
}

/* --- hostile senders --- */

static void test_body_of_another_length(void **state)
{
	static const struct {
		uint64_t announced;
		size_t first, second;    /* bytes; the second comes with FIN */
	} rows[] = {{10, 11, 0}, {10, 5, 6}, {10, 10, 1}, {10, 0, 9}, {10, 5, 0}, {0, 1, 0}};
	static const char *const targets[] = {"/echo", "/hello.txt"};
	struct world *w = *state;
	uint8_t piece[16] = {0};
	unsigned bad = 0;

	for (unsigned t = 0; t < sl_nb(targets); t++) {
		for (unsigned i = 0; i < sl_nb(rows); i++) {
			struct message m;
			struct fake_flow *ff;

			message_make(&m, SL_HTTP_POST, targets[t], NULL, rows[i].announced);
			ff = fake_open(&w->k, m.data, m.len, 0, NULL);
			if (rows[i].first)
				fake_send(ff, piece, rows[i].first, 0);
			fake_send(ff, piece, rows[i].second, SL_F_FIN);
			assert_true(ff->out_reset);
			assert_int_equal(ff->out_status, SL_ERROR_PROTOCOL);
			assert_int_equal(w->k.inst.counters[SL_CNT_BAD_MESSAGE], ++bad);
		}
	}
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void refused(struct world *w, const struct message *m, uint32_t len, uint32_t flags)
{
	uint64_t before = w->k.inst.counters[SL_CNT_BAD_MESSAGE];
	int status = 0;

	assert_null(fake_open(&w->k, m->data, len, flags, &status));
	assert_int_equal(status, -SL_ERROR_PROTOCOL);
	assert_int_equal(w->k.inst.counters[SL_CNT_BAD_MESSAGE], before + 1);
}

static void test_hostile_messages(void **state)
{
	struct world *w = *state;
	struct message m;
	struct sl_http_request *r;
	struct sl_http_field *f;

#define FRESH() (r = message_make(&m, GET, "/hello.txt?q", "range: bytes=0-1\nx: y\n", 0), f = (void *)(r + 1), (void)f)
#define BAD(change) do { FRESH(); change; refused(w, &m, m.len, SL_F_FIN); } while (0)
	BAD(r->magic ^= 1);
	BAD(r->head_len--);
	BAD(r->head_len++);
	BAD(r->head_len = 0);
	BAD(r->head_len = 65535);
	BAD(r->nb_fields = 129);
	BAD(r->nb_fields = 65535);
	BAD(r->nb_fields = 60);
	BAD(r->path_off = r->head_len);
	BAD(r->path_len = 65535);
	BAD((r->path_off = 65535, r->path_len = 65535));
	BAD(r->query_len = r->head_len);
	BAD(r->method_off = 65535);
	BAD(r->authority_off = (__u16)(r->head_len + 1));
	BAD(f[0].name_off = 65535);
	BAD(f[0].name_len = 65535);
	BAD(f[1].value_off = r->head_len);
	BAD(f[1].value_len = 60000);
	BAD(r->body_len = 1);   /* but FIN came with it */
	FRESH();
	for (uint32_t len = 0; len < m.len; len++)
		refused(w, &m, len, SL_F_FIN);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.requests, 0);
}

/* Any change of a good message is answered or refused; the sanitizers watch that nothing else happens. */
static void test_mutated_messages(void **state)
{
	struct world *w = *state;
	uint32_t x = 12345;
	struct message good, m;

	message_make(&good, GET, "/sub/%69ndex.html?a",
		     "range: bytes=0-1\nif-none-match: \"a\", W/\"b\"\nif-range: \"q\"\n"
		     "if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT\nif-match: *\n", 0);
	for (int i = 0; i < 50000; i++) {
		struct fake_flow *ff;

		m = good;
		for (unsigned n = 1 + i % 3; n; n--) {
			x ^= x << 13, x ^= x >> 17, x ^= x << 5;
			m.data[8 + x % (good.len - 8)] = (uint8_t)(x >> 24);
		}
		((struct sl_http_request *)(void *)m.data)->head_len = (uint16_t)good.len;
		ff = fake_open(&w->k, m.data, m.len, i % 2 ? SL_F_FIN : 0, NULL);
		if (ff && !ff->ended)
			fake_reset(ff, SL_ERROR_CLIENT);
		if (i % 1000 == 0) {   /* so that the fake's list stays short */
			fake_stop(&w->k);
			fake_init(&w->k, &sl_layer_app);
			fake_conf(&w->k, SL_CONF_APP, &w->conf, sizeof(w->conf));
			assert_int_equal(fake_start(&w->k), 0);
		}
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	body_expect(w, "/hello.txt", "0123456789");
}

/* --- the layer --- */

static void test_limits_and_ends(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff[4];
	struct message m;
	int status;

	for (int i = 0; i < 4; i++)
		ff[i] = request_send(w, GET, "/big.bin", NULL);
	message_make(&m, GET, "/", NULL, 0);
	assert_null(fake_open(&w->k, m.data, m.len, SL_F_FIN, &status));   /* max_requests */
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_reset(ff[0], SL_ERROR_CLIENT);
	assert_int_equal(w->k.inst.active_flows, 3);
	ff[0] = request_send(w, GET, "/big.bin", NULL);
	fake_die(ff[1], false);
	assert_int_equal(w->k.inst.active_flows, 3);
	w->k.inst.draining = true;
	sl_layer_app.drain(&w->k.inst);
	assert_null(fake_open(&w->k, m.data, m.len, SL_F_FIN, &status));
	assert_int_equal(status, -SL_ERROR_REFUSED);
	fake_credit(ff[2], BIG_LEN);   /* what runs is finished */
	big_check(ff[2], 0, BIG_LEN);
	assert_int_equal(w->k.inst.active_flows, 2);   /* these are left to stop() */
}

static void test_trace(void **state)
{
	static const enum sl_trace_point points[] = {SL_TRACE_IN, SL_TRACE_OUT, SL_TRACE_DONE};
	struct world *w = *state;
	struct fake_flow *ff;
	struct message m;

	message_make(&m, GET, "/hello.txt", NULL, 0);
	ff = fake_open(&w->k, m.data, m.len, SL_F_FIN | SL_F_TRACE, NULL);
	assert_int_equal(w->k.nb_traces, sl_nb(points));
	for (unsigned i = 0; i < sl_nb(points); i++) {
		assert_int_equal(w->k.traces[i].point, points[i]);
		assert_int_equal(w->k.traces[i].request_id, ff->flow.request_id);
	}
}

static void conf_refused(struct sl_app_conf *conf, uint32_t len, const char *words)
{
	struct fake k;

	fake_init(&k, &sl_layer_app);
	if (conf)
		fake_conf(&k, SL_CONF_APP, conf, len);
	assert_true(fake_start(&k) < 0);
	assert_non_null(strstr(k.fail, words));
	fake_stop(&k);
}

static void test_bad_configuration(void **state)
{
	struct sl_app_conf conf = {.max_requests = 1, .root = "/nonexistent/folder"};

	(void)state;
	conf_refused(NULL, 0, "configuration");
	conf_refused(&conf, sizeof(conf) - 1, "configuration");
	conf_refused(&conf, sizeof(conf), "/nonexistent/folder: No such file");
	conf.max_requests = 0;
	conf_refused(&conf, sizeof(conf), "configuration");
}

static void test_no_root(void **state)
{
	struct world *w = *state;
	const struct row rows[] = {{GET, "/hello.txt", NULL, 404, NULL, NULL}, {GET, "/", NULL, 404, NULL, NULL}};

	fake_stop(&w->k);
	memset(w->conf.root, 0, sizeof(w->conf.root));
	fake_init(&w->k, &sl_layer_app);
	fake_conf(&w->k, SL_CONF_APP, &w->conf, sizeof(w->conf));
	assert_int_equal(fake_start(&w->k), 0);
	rows_check(w, rows, sl_nb(rows));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)
	const struct CMUnitTest tests[] = {
		T(test_paths), T(test_nothing_outside_the_root), T(test_long_paths), T(test_conditions),
		T(test_ranges), T(test_big_file_with_little_room), T(test_no_slot_at_first), T(test_file_shrinks),
		T(test_replaced_file_is_seen), T(test_open_files_are_bounded), T(test_echo_5_mib_known_length),
		T(test_echo_5_mib_unknown_length), T(test_echo_empty), T(test_unwanted_body_is_thrown_away),
		T(test_body_of_another_length), T(test_hostile_messages), T(test_mutated_messages),
		T(test_limits_and_ends), T(test_trace), T(test_no_root), cmocka_unit_test(test_bad_configuration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
