/* SPDX-License-Identifier: Apache-2.0 */
/* struct sl_http_response -> head of an HTTP/1.1 answer. The message is a private copy, but every number in it may
 * be a lie. */
#include "layers/http/http.h"

struct writer {
	uint8_t *at, *end;
	bool full;   /* something did not fit: fields of a hostile message may overlap, so their sum has no bound */
};

static void put(struct writer *w, const void *p, size_t len)
{
	if (len > (size_t)(w->end - w->at)) {
		w->full = true;
		return;
	}
	memcpy(w->at, p, len);
	w->at += len;
}

static void put_text(struct writer *w, const char *text)
{
	put(w, text, strlen(text));
}

static void put_number(struct writer *w, uint64_t v)
{
	char text[20];
	unsigned n = sizeof(text);

	do {
		text[--n] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	put(w, text + n, sizeof(text) - n);
}

/* RFC 9110 section 15; an unknown one gets an empty phrase (RFC 9112 section 4) */
static const char *reason(unsigned status)
{
	static const struct {
		uint16_t status;
		const char *text;
	} reasons[] = {
		{200, "OK"}, {201, "Created"}, {202, "Accepted"}, {203, "Non-Authoritative Information"},
		{204, "No Content"}, {205, "Reset Content"}, {206, "Partial Content"}, {300, "Multiple Choices"},
		{301, "Moved Permanently"}, {302, "Found"}, {303, "See Other"}, {304, "Not Modified"},
		{307, "Temporary Redirect"}, {308, "Permanent Redirect"}, {400, "Bad Request"},
		{401, "Unauthorized"}, {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"},
		{406, "Not Acceptable"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
		{411, "Length Required"}, {412, "Precondition Failed"}, {413, "Content Too Large"},
		{414, "URI Too Long"}, {415, "Unsupported Media Type"}, {416, "Range Not Satisfiable"},
		{417, "Expectation Failed"}, {421, "Misdirected Request"}, {422, "Unprocessable Content"},
		{426, "Upgrade Required"}, {428, "Precondition Required"}, {429, "Too Many Requests"},
		{431, "Request Header Fields Too Large"}, {500, "Internal Server Error"}, {501, "Not Implemented"},
		{502, "Bad Gateway"}, {503, "Service Unavailable"}, {504, "Gateway Timeout"},
		{505, "HTTP Version Not Supported"},
	};

	for (unsigned i = 0; i < sl_nb(reasons); i++) {
		if (reasons[i].status == status)
			return reasons[i].text;
	}
	return "";
}

static void put_status_line(struct writer *w, unsigned status)
{
	put_text(w, "HTTP/1.1 ");
	put_number(w, status);
	put(w, " ", 1);
	put_text(w, reason(status));
	put(w, "\r\n", 2);
}

/* --- checks --- */

/* Fields by which a message would decide its own framing (abi/http.h: they never appear). */
static bool is_framing(const char *name, uint32_t len)
{
	static const char *const names[] = {"content-length", "transfer-encoding", "connection", "keep-alive",
					    "proxy-connection", "te", "trailer", "upgrade"};

	for (unsigned i = 0; i < sl_nb(names); i++) {
		if (strlen(names[i]) == len && !memcmp(names[i], name, len))
			return true;
	}
	return false;
}

static bool is_name(const char *name, uint32_t len, const char *what)
{
	return strlen(what) == len && !memcmp(name, what, len);
}

static bool field_ok(const struct sl_http_field *f, const struct sl_http_response *r, const uint8_t *msg)
{
	const char *text = (const char *)msg;

	return (uint32_t)f->name_off + f->name_len <= r->head_len &&
	       (uint32_t)f->value_off + f->value_len <= r->head_len &&
	       sl_http_token_lower_ok(text + f->name_off, f->name_len) &&
	       sl_http_value_ok(text + f->value_off, f->value_len) && !is_framing(text + f->name_off, f->name_len);
}

static bool fields_write(struct writer *w, const struct sl_http_response *r, const uint8_t *msg, const char *date)
{
	bool has_date = false, has_server = false;

	for (unsigned i = 0; i < r->nb_fields; i++) {
		struct sl_http_field f;

		memcpy(&f, msg + sizeof(*r) + i * sizeof(f), sizeof(f));
		if (!field_ok(&f, r, msg))
			return false;
		has_date |= is_name((const char *)msg + f.name_off, f.name_len, "date");
		has_server |= is_name((const char *)msg + f.name_off, f.name_len, "server");
		put(w, msg + f.name_off, f.name_len);
		put(w, ": ", 2);
		put(w, msg + f.value_off, f.value_len);
		put(w, "\r\n", 2);
	}
	if (!has_date)
		put_text(w, date);
	if (!has_server)
		put_text(w, "server: swarmline\r\n");
	return true;
}

/* --- framing --- */

static void connection_write(struct writer *w, const struct http_reply *r)
{
	if (!r->keep)
		put_text(w, "connection: close\r\n");
	else if (r->http_1_0)   /* it is not its default (RFC 9112 section 9.3) */
		put_text(w, "connection: keep-alive\r\n");
	put(w, "\r\n", 2);
}

/* RFC 9110 section 8.6, RFC 9112 section 6.3. */
static void framing_write(struct writer *w, struct http_reply *r, uint64_t body_len)
{
	bool no_body = r->head_only || r->status == 204 || r->status == 304;

	if (r->status == 205)   /* RFC 9110 section 15.3.6: never a body, but its end must be seen */
		body_len = 0;
	r->chunked = false;
	r->body_left = no_body ? 0 : body_len;
	if (r->status == 204) {
		;
	} else if (body_len != UINT64_MAX) {
		put_text(w, "content-length: ");
		put_number(w, body_len);
		put(w, "\r\n", 2);
	} else if (!no_body && r->http_1_0) {
		r->keep = false;
	} else if (!no_body) {
		r->chunked = true;
		put_text(w, "transfer-encoding: chunked\r\n");
	}
	connection_write(w, r);
}

int sl_http_response_write(const uint8_t *msg, const char *date, struct http_reply *r, uint8_t *out, uint32_t cap)
{
	struct writer w = {.at = out, .end = out + cap};
	struct sl_http_response head;

	memcpy(&head, msg, sizeof(head));
	if (head.magic != SL_HTTP_MAGIC || head.status < 200 || head.status > 599 ||
	    head.nb_fields > SL_HTTP_FIELDS_MAX ||
	    sizeof(head) + head.nb_fields * sizeof(struct sl_http_field) > head.head_len)
		return -EBADMSG;
	r->status = head.status;
	put_status_line(&w, head.status);
	if (!fields_write(&w, &head, msg, date))
		return -EBADMSG;
	framing_write(&w, r, head.body_len);
	return w.full ? -EBADMSG : (int)(w.at - out);
}

uint32_t sl_http_error_write(const struct http_reply *r, const char *date, uint8_t *out, uint32_t cap)
{
	struct writer w = {.at = out, .end = out + cap};
	const char *text = reason(r->status);

	put_status_line(&w, r->status);
	put_text(&w, date);
	put_text(&w, "server: swarmline\r\n");
	if (r->status == 503)
		put_text(&w, "retry-after: 1\r\n");
	put_text(&w, "content-type: text/plain\r\ncontent-length: ");
	put_number(&w, 3 + 1 + strlen(text) + 1);
	put(&w, "\r\n", 2);
	connection_write(&w, r);
	if (!r->head_only) {
		put_number(&w, r->status);
		put(&w, " ", 1);
		put_text(&w, text);
		put(&w, "\n", 1);
	}
	return (uint32_t)(w.at - out);
}

/* --- date --- */

static char *two_digits(char *p, unsigned v)
{
	*p++ = (char)('0' + v / 10);
	*p++ = (char)('0' + v % 10);
	return p;
}

void sl_http_date_write(int64_t unix_s, char out[64])
{
	static const char days[] = "ThuFriSatSunMonTueWed", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	unsigned s = (unsigned)(unix_s % 86400), day = (unsigned)(unix_s / 86400);
	/* civil date from days since 1970 in years that begin in March: the leap day is the last of such a year */
	unsigned shifted = day + 719468, era = shifted / 146097, of_era = shifted % 146097;
	unsigned year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	unsigned of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	unsigned month = (5 * of_year + 2) / 153;   /* 0 = March */
	unsigned mday = of_year - (153 * month + 2) / 5 + 1;
	unsigned year = era * 400 + year_of_era + (month >= 10);
	char *p = out;

	month = (month + 2) % 12;
	p = (char *)memcpy(p, "date: ", 6) + 6;
	p = (char *)memcpy(p, days + day % 7 * 3, 3) + 3;
	p = (char *)memcpy(p, ", ", 2) + 2;
	p = two_digits(p, mday);
	*p++ = ' ';
	p = (char *)memcpy(p, months + month * 3, 3) + 3;
	*p++ = ' ';
	p = two_digits(two_digits(p, year / 100 % 100), year % 100);
	*p++ = ' ';
	p = two_digits(p, s / 3600);
	*p++ = ':';
	p = two_digits(p, s / 60 % 60);
	*p++ = ':';
	p = two_digits(p, s % 60);
	memcpy(p, " GMT\r\n", 7);
}
