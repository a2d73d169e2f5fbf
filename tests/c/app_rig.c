/* SPDX-License-Identifier: Apache-2.0 */
#include "app_rig.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MTIME = 784111777 };

/* --- the folder --- */

void file_write(const struct world *w, const char *name, const void *p, size_t len)
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

void folder_make(const struct world *w, const char *name)
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

uint8_t big_byte(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

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

int world_open(void **state)
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

int world_close(void **state)
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

static uint16_t text_put(struct message *m, const char *s, size_t len)
{
	uint32_t off = m->len;

	assert_true(off + len <= sizeof(m->data));
	memcpy(m->data + off, s, len);
	m->len += (uint32_t)len;
	return (uint16_t)off;
}

struct sl_http_request *message_make(struct message *m, uint8_t method, const char *target, const char *fields,
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

struct fake_flow *request_send(struct world *w, uint8_t method, const char *target, const char *fields)
{
	struct message m;
	struct fake_flow *ff;

	message_make(&m, method, target, fields, 0);
	ff = fake_open(&w->k, m.data, m.len, SL_F_FIN, NULL);
	assert_non_null(ff);
	return ff;
}

/* --- answers --- */

void answer_read(const struct fake_flow *ff, struct answer *a)
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

const char *field_of(const struct answer *a, const char *name)
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

void row_check(struct world *w, const struct row *r)
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

void rows_check(struct world *w, const struct row *rows, size_t nb)
{
	size_t timed = 0;

	for (size_t i = 0; i < nb; i++)
		row_check(w, &rows[i]);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.requests, nb);
	for (unsigned i = 0; i < SL_LATENCY_MAX; i++)
		timed += w->k.inst.latency[i];
	assert_int_equal(timed, nb);
}

void big_check(const struct fake_flow *ff, size_t from, size_t to)
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

void body_expect(struct world *w, const char *target, const char *body)
{
	struct fake_flow *ff = request_send(w, GET, target, NULL);
	struct answer a;

	answer_read(ff, &a);
	assert_int_equal(a.body_len, strlen(body));
	assert_memory_equal(a.body, body, a.body_len);
}
