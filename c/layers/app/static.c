/* SPDX-License-Identifier: Apache-2.0 */
/* Answers GET and HEAD from a file: conditions (RFC 9110 section 13) and one range (section 14). */
#include <inttypes.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "layers/app/app.h"

/* One entity-tag of a list (RFC 9110 section 8.8.3) from *t. Returns false at the end or at what is none. */
static bool etag_next(struct sl_app_text *t, struct sl_app_text *tag, bool *weak)
{
	const char *end;

	while (t->len && (*t->p == ' ' || *t->p == '\t' || *t->p == ','))
		t->p++, t->len--;
	*weak = t->len >= 2 && t->p[0] == 'W' && t->p[1] == '/';
	if (*weak)
		t->p += 2, t->len -= 2;
	if (t->len < 2 || *t->p != '"')
		return false;
	end = memchr(t->p + 1, '"', t->len - 1);
	if (!end)
		return false;
	tag->p = t->p;
	tag->len = (uint32_t)(end + 1 - t->p);
	t->p += tag->len;
	t->len -= tag->len;
	return true;
}

static bool etag_listed(struct sl_app_text line, const char *etag, bool strong)
{
	struct sl_app_text tag;
	bool weak;

	if (line.len == 1 && *line.p == '*')
		return true;
	while (etag_next(&line, &tag, &weak)) {
		if (!(strong && weak) && tag.len == strlen(etag) && !memcmp(tag.p, etag, tag.len))
			return true;
	}
	return false;
}

static bool strong_match(struct sl_app_text line, const void *etag)
{
	return etag_listed(line, etag, true);
}

static bool weak_match(struct sl_app_text line, const void *etag)
{
	return etag_listed(line, etag, false);
}

/* The date of a field that must stand once. */
static bool date_get(const struct sl_app_message *m, enum sl_app_field name, int64_t *t)
{
	return m->nb_lines[name] == 1 && !sl_app_date_parse(m->field[name], t);
}

/* The order of RFC 9110 section 13.2.2. Returns 200: go on, 304 or 412. */
static uint16_t conditions_check(const struct sl_app_message *m, const struct sl_app_file *f)
{
	int64_t mtime = (int64_t)(f->mtime_ns / 1000000000u), t;

	if (m->nb_lines[SL_APP_IF_MATCH]) {
		if (!sl_app_field_any(m, SL_APP_IF_MATCH, strong_match, f->etag))
			return 412;
	} else if (date_get(m, SL_APP_IF_UNMODIFIED_SINCE, &t) && mtime > t) {
		return 412;
	}
	if (m->nb_lines[SL_APP_IF_NONE_MATCH]) {
		if (sl_app_field_any(m, SL_APP_IF_NONE_MATCH, weak_match, f->etag))
			return 304;
	} else if (date_get(m, SL_APP_IF_MODIFIED_SINCE, &t) && mtime <= t) {
		return 304;
	}
	return 200;
}

/* RFC 9110 section 13.1.5: without a match, or with one that may be wrong, the whole file is sent. */
static bool range_allowed(const struct sl_app_message *m, const struct sl_app_file *f)
{
	int64_t mtime = (int64_t)(f->mtime_ns / 1000000000u), t;

	if (!m->nb_lines[SL_APP_IF_RANGE])
		return true;
	if (m->nb_lines[SL_APP_IF_RANGE] > 1)
		return false;
	if (!sl_app_date_parse(m->field[SL_APP_IF_RANGE], &t))
		return t == mtime && time(NULL) > mtime + 1;   /* younger: it could have changed twice in that second */
	return m->field[SL_APP_IF_RANGE].len > 1 && strong_match(m->field[SL_APP_IF_RANGE], f->etag);
}

/* Digits from *t, the largest number if it is larger. Returns whether there was one. */
static bool number_next(struct sl_app_text *t, uint64_t *n)
{
	const char *start = t->p;

	for (*n = 0; t->len && *t->p >= '0' && *t->p <= '9'; t->p++, t->len--) {
		unsigned digit = (unsigned)(*t->p - '0');

		*n = *n > (UINT64_MAX - digit) / 10 ? UINT64_MAX : *n * 10 + digit;
	}
	return t->p != start;
}

/* One byte range of a file of size bytes. Returns 206 and [*pos, *end), 416, or 200: no range that we serve, so the
 * whole file. */
static uint16_t range_read(struct sl_app_text t, uint64_t size, uint64_t *pos, uint64_t *end)
{
	uint64_t first, last;
	bool has_first, has_last;

	if (t.len < 6 || strncasecmp(t.p, "bytes=", 6))
		return 200;
	t.p += 6;
	t.len -= 6;
	has_first = number_next(&t, &first);
	if (!t.len || *t.p != '-')
		return 200;
	t.p++;
	t.len--;
	has_last = number_next(&t, &last);
	if (t.len || (!has_first && !has_last) || (has_first && has_last && last < first))
		return 200;   /* several ranges, or nonsense */
	if (!has_first) {   /* the last so many bytes */
		*pos = size - sl_min(last, size);
		return !last ? 416 : size ? 206 : 200;
	}
	*pos = first;
	*end = has_last && last < size ? last + 1 : size;
	return first < size ? 206 : 416;
}

static uint32_t head_write(const struct sl_app_file *f, uint16_t status, uint64_t pos, uint64_t end, uint8_t *out)
{
	struct sl_app_head h;
	char range[80];
	int len;

	sl_app_head_init(&h, status, status == 304 ? f->size : end - pos);
	sl_app_head_add(&h, "last-modified", f->last_modified, strlen(f->last_modified));
	sl_app_head_add(&h, "etag", f->etag, strlen(f->etag));
	if (status == 206) {
		len = snprintf(range, sizeof(range), "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, pos, end - 1, f->size);
		sl_app_head_add(&h, "content-type", f->type, strlen(f->type));
		sl_app_head_add(&h, "content-range", range, (size_t)len);
	}
	return sl_app_head_write(&h, out, SL_APP_HEAD_MAX);
}

/* r->file is set */
static void file_answer(struct sl_app_request *r, const struct sl_app_message *m)
{
	struct sl_app_file *f = r->file;
	uint64_t pos = 0, end = f->size;
	uint16_t status = conditions_check(m, f);
	char range[40];

	if (status == 412) {
		sl_app_answer(r, m, 412, NULL, NULL);
		return;
	}
	if (status == 200 && m->r.method == SL_HTTP_GET && m->nb_lines[SL_APP_RANGE] == 1 && range_allowed(m, f))
		status = range_read(m->field[SL_APP_RANGE], f->size, &pos, &end);
	if (status == 416) {
		snprintf(range, sizeof(range), "bytes */%" PRIu64, f->size);
		sl_app_answer(r, m, 416, "content-range", range);
		return;
	}
	if (status == 200) {
		memcpy(r->held, f->head, f->head_len);
		r->held_len = f->head_len;
	} else {
		r->held_len = head_write(f, status, pos, end, r->held);
	}
	if (m->r.method == SL_HTTP_GET && status != 304) {
		r->pos = pos;
		r->end = end;
	}
	sl_app_push(r);
}

static uint16_t error_status(int err)
{
	switch (-err) {
	case EACCES:
	case EPERM:
		return 403;
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case EAGAIN:
		return 503;
	case EIO:
		return 500;
	default:   /* also what RESOLVE_BENEATH refused: what there is outside the root is nobody's business */
		return 404;
	}
}

static void redirect(struct sl_app_request *r, const struct sl_app_message *m)
{
	char location[SL_APP_HEAD_MAX - 256];

	if (sl_app_target_redirect(m->path, m->query, location, sizeof(location)))
		sl_app_answer(r, m, 301, "location", location);
	else
		sl_app_answer(r, m, 414, NULL, NULL);
}

void sl_app_static(struct sl_app_request *r, const struct sl_app_message *m)
{
	const char *index = (const char *)r->app->conf.index;
	char path[SL_APP_PATH_MAX];
	uint32_t len;
	bool dir;
	int err;

	if (m->r.method != SL_HTTP_GET && m->r.method != SL_HTTP_HEAD) {
		sl_app_answer(r, m, 405, "allow", "GET, HEAD");
		return;
	}
	err = sl_app_target_decode(m->path, path, &len, &dir);
	if (!err && dir) {
		int n = snprintf(path + len, sizeof(path) - len, "%s%s", len ? "/" : "", index);

		len += (uint32_t)n;
		err = len >= sizeof(path) ? -ENAMETOOLONG : 0;
	}
	if (err) {
		sl_app_answer(r, m, err == -EINVAL ? 400 : 414, NULL, NULL);
		return;
	}
	err = dir && !*index ? -ENOENT : sl_app_file_get(r->app, path, len, &r->file);
	if (!err)
		file_answer(r, m);
	else if (err == -EISDIR && !dir)
		redirect(r, m);
	else
		sl_app_answer(r, m, error_status(err), NULL, NULL);
}
