/* SPDX-License-Identifier: Apache-2.0 */
/* Characters and lines. All functions read private memory. */
#include "layers/http/http.h"

/* RFC 9110 section 5.6.2 */
static const bool tchar[256] = {
	['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1, ['.'] = 1,
	['^'] = 1, ['_'] = 1, ['`'] = 1, ['|'] = 1, ['~'] = 1,
	['0' ... '9'] = 1, ['a' ... 'z'] = 1, ['A' ... 'Z'] = 1,
};

/* RFC 3986 section 3.2.2: reg-name */
static const bool reg_name[256] = {
	['!'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['('] = 1, [')'] = 1, ['*'] = 1, ['+'] = 1, [','] = 1,
	['-'] = 1, ['.'] = 1, [';'] = 1, ['='] = 1, ['_'] = 1, ['~'] = 1,
	['0' ... '9'] = 1, ['a' ... 'z'] = 1, ['A' ... 'Z'] = 1,
};

static bool is_upper(uint8_t c)
{
	return (uint8_t)(c - 'A') < 26;
}

static bool is_digit(uint8_t c)
{
	return (uint8_t)(c - '0') < 10;
}

static bool is_hex(uint8_t c)
{
	return is_digit(c) || (uint8_t)((c | 0x20) - 'a') < 6;
}

bool sl_http_token_ok(const char *p, uint32_t len)
{
	bool ok = len > 0;

	for (uint32_t i = 0; i < len; i++)
		ok &= tchar[(uint8_t)p[i]];
	return ok;
}

bool sl_http_token_lower(char *p, uint32_t len)
{
	bool ok = len > 0;

	for (uint32_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)p[i];

		ok &= tchar[c];
		p[i] = (char)(is_upper(c) ? c | 0x20 : c);
	}
	return ok;
}

bool sl_http_token_lower_ok(const char *p, uint32_t len)
{
	bool ok = len > 0;

	for (uint32_t i = 0; i < len; i++)
		ok &= tchar[(uint8_t)p[i]] & !is_upper((uint8_t)p[i]);
	return ok;
}

bool sl_http_value_ok(const char *p, uint32_t len)
{
	uint8_t bad = 0;   /* no branch in the loop: the compiler makes vectors of it */

	for (uint32_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)p[i];

		bad |= (uint8_t)(((c < 0x20) & (c != '\t')) | (c == 0x7f));
	}
	return !bad;
}

bool sl_http_same(const char *p, const char *lower, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)p[i];

		if ((is_upper(c) ? c | 0x20 : c) != (uint8_t)lower[i])
			return false;
	}
	return true;
}

bool sl_http_text_is(const char *p, uint32_t len, const char *lower)
{
	return strlen(lower) == len && sl_http_same(p, lower, len);
}

bool sl_http_list_next(const char **p, const char *end, const char **member, uint32_t *len)
{
	const char *q = *p, *last;

	while (q < end && (*q == ' ' || *q == '\t' || *q == ','))
		q++;
	*member = q;
	while (q < end && *q != ',')
		q++;
	*p = q;
	for (last = q; last > *member && (last[-1] == ' ' || last[-1] == '\t'); last--)
		;
	*len = (uint32_t)(last - *member);
	return *len > 0;
}

bool sl_http_authority_ok(const char *p, uint32_t len)
{
	const char *end = p + len, *host = p;

	if (p < end && *p == '[') {   /* IPv6 (RFC 3986 section 3.2.2) */
		for (p++; p < end && (is_hex((uint8_t)*p) || *p == ':' || *p == '.'); p++)
			;
		if (p == host + 1 || p == end || *p++ != ']')
			return false;
	} else {
		while (p < end && reg_name[(uint8_t)*p])
			p++;
		if (p == host)
			return false;
	}
	if (p < end && *p++ != ':')
		return false;
	for (host = p; p < end && is_digit((uint8_t)*p); p++)
		;
	return p == end && p - host <= 5;
}

/* method SP request-target SP HTTP/1.x */
static int request_line_check(const char *p, uint32_t len)
{
	const char *end = p + len, *sp = memchr(p, ' ', len), *version;
	bool ok = true;

	if (!sp || !sl_http_token_ok(p, (uint32_t)(sp - p)))
		return 400;
	p = sp + 1;
	sp = memchr(p, ' ', (size_t)(end - p));
	if (!sp || sp == p)
		return 400;
	for (; p < sp; p++)   /* no fragment: RFC 9112 section 3.2 */
		ok &= *p > 0x20 && *p < 0x7f && *p != '#';
	version = sp + 1;
	if (!ok || end - version != 8 || memcmp(version, "HTTP/", 5) || version[6] != '.' ||
	    !is_digit((uint8_t)version[5]) || !is_digit((uint8_t)version[7]))
		return 400;
	return version[5] == '1' && (version[7] == '0' || version[7] == '1') ? 0 : 505;
}

int sl_http_line_check(const uint8_t *p, uint32_t len, bool first)
{
	/* one CR, right before the one LF; no NUL; no folded line (RFC 9112 sections 2.2 and 5.2) */
	if (len < 2 || p[len - 1] != '\n' || memchr(p, '\r', len) != p + len - 2 || memchr(p, 0, len) || *p == ' ' ||
	    *p == '\t')
		return 400;
	return first ? request_line_check((const char *)p, len - 2) : 0;
}

int sl_http_target_split(const char *p, uint32_t len, bool options, struct http_target *t)
{
	const char *end = p + len, *q;

	*t = (struct http_target){.path = p};
	if (len == 1 && *p == '*' && options) {
		t->path_len = 1;
		return 0;
	}
	if (*p != '/') {
		uint32_t scheme = len > 8 && sl_http_text_is(p, 8, "https://") ? 8 : 7;

		if (len <= scheme || (scheme == 7 && !sl_http_text_is(p, 7, "http://")))
			return 400;
		t->authority = p += scheme;
		while (p < end && *p != '/' && *p != '?')
			p++;
		t->authority_len = (uint32_t)(p - t->authority);
		if (!sl_http_authority_ok(t->authority, t->authority_len))
			return 400;
		t->path = p;
	}
	q = memchr(p, '?', (size_t)(end - p));
	t->path_len = (uint32_t)((q ? q : end) - p);
	if (q) {
		t->query = q + 1;
		t->query_len = (uint32_t)(end - t->query);
	}
	if (!t->path_len) {   /* absolute-form without a path: RFC 9112 sections 3.2.1 and 3.2.4 */
		t->path = options && !q ? "*" : "/";
		t->path_len = 1;
	}
	return 0;
}
