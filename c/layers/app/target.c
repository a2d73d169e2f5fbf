/* SPDX-License-Identifier: Apache-2.0 */
/* From a request's path (RFC 3986 section 3.3) to a file's name below the root, and back for redirects. */
#include "layers/app/app.h"

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One character at *pos, decoded. Returns it, or -EINVAL. */
static int char_next(struct sl_app_text t, uint32_t *pos)
{
	int high, low, c = (unsigned char)t.p[(*pos)++];

	if (c == '%') {
		if (t.len - *pos < 2)
			return -EINVAL;
		high = hex_value(t.p[*pos]);
		low = hex_value(t.p[*pos + 1]);
		*pos += 2;
		if (high < 0 || low < 0)
			return -EINVAL;
		c = high << 4 | low;
		if (c == '/')   /* would be a separator for the kernel, but was none for those who looked before us */
			return -EINVAL;
	}
	return c ? c : -EINVAL;
}

/* One segment, decoded, behind out[*len). Returns 0 or -errno. */
static int segment_next(struct sl_app_text t, uint32_t *pos, char *out, uint32_t *len)
{
	while (*pos < t.len && t.p[*pos] != '/') {
		int c = char_next(t, pos);

		if (c < 0)
			return c;
		if (*len == SL_APP_PATH_MAX - 1)
			return -ENAMETOOLONG;
		out[(*len)++] = (char)c;
	}
	return 0;
}

int sl_app_target_decode(struct sl_app_text path, char *out, uint32_t *out_len, bool *dir)
{
	uint32_t pos = 0, len = 0;

	if (!path.len || path.p[0] != '/')
		return -EINVAL;
	*dir = true;
	while (pos < path.len) {
		uint32_t start = len + (len > 0), end = start;   /* behind the "/" that parts it from the one before */
		int err;

		pos++;   /* the "/" in front */
		if (start > SL_APP_PATH_MAX - 1)
			return -ENAMETOOLONG;
		err = segment_next(path, &pos, out, &end);
		if (err)
			return err;
		if (end - start == 2 && out[start] == '.' && out[start + 1] == '.')
			return -EINVAL;
		*dir = end == start || (end - start == 1 && out[start] == '.');
		if (*dir)
			continue;
		if (start)
			out[start - 1] = '/';
		len = end;
	}
	out[len] = 0;
	*out_len = len;
	return 0;
}

/* Characters that may stand in a path or query as they are: pchar, "/" and "?" (RFC 3986). The rest is encoded, a
 * backslash too, which browsers take for a slash. */
static bool is_plain(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       (c && strchr("-._~!$&'()*+,;=:@/?%", c));
}

static uint32_t text_encode(struct sl_app_text t, char *out, uint32_t cap)
{
	static const char hex[] = "0123456789ABCDEF";
	uint32_t len = 0;

	for (uint32_t i = 0; i < t.len && len + 3 <= cap; i++) {
		if (is_plain(t.p[i])) {
			out[len++] = t.p[i];
		} else {
			out[len++] = '%';
			out[len++] = hex[(unsigned char)t.p[i] >> 4];
			out[len++] = hex[t.p[i] & 15];
		}
	}
	return len;
}

uint32_t sl_app_target_redirect(struct sl_app_text path, struct sl_app_text query, char *out, uint32_t cap)
{
	uint32_t len = 0;

	if (3ull * path.len + 3ull * query.len + 4 > cap)
		return 0;
	/* "//name" would be a reference to another host (RFC 3986 section 4.2) */
	while (path.len && path.p[0] == '/')
		path.p++, path.len--;
	out[len++] = '/';
	len += text_encode(path, out + len, cap - len);
	out[len++] = '/';
	if (query.len) {
		out[len++] = '?';
		len += text_encode(query, out + len, cap - len);
	}
	out[len] = 0;
	return len;
}
