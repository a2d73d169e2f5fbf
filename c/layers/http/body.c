/* SPDX-License-Identifier: Apache-2.0 */
/* Decoder of request bodies: identity and chunked (RFC 9112 section 7.1).
 *
 * Chunk framing is not left to llhttp: as Debian builds it (loose mode) it takes any byte for the LF after a chunk
 * size and any two bytes for the CRLF after a chunk. This decoder reads each framing byte exactly once, so it needs
 * no private copy of shared memory. */
#include "layers/http/http.h"

enum {
	SIZE_DIGITS_MAX = 15,   /* < 2^60: sums of it can not overflow before max is noticed */
	FRAMING_MAX = 8192,     /* bytes of extensions and trailers in one body: they are thrown away anyhow */
};

enum {
	BODY_IDENTITY,
	CHUNK_SIZE,      /* hex digits */
	CHUNK_EXT,       /* behind ; */
	CHUNK_SIZE_LF,
	CHUNK_DATA,
	CHUNK_DATA_CR,
	CHUNK_DATA_LF,
	TRAILER_START,   /* first character of a line behind the last chunk */
	TRAILER_NAME,
	TRAILER_VALUE,
	TRAILER_LF,
	END_LF,
	ENDED,
};

void sl_http_body_init(struct http_body *b, uint64_t body_len, uint64_t max)
{
	*b = (struct http_body){.max = max ? max : UINT64_MAX};
	if (body_len == UINT64_MAX) {
		b->state = CHUNK_SIZE;
	} else {
		b->state = body_len ? BODY_IDENTITY : ENDED;
		b->left = body_len;
	}
}

bool sl_http_body_ended(const struct http_body *b)
{
	return b->state == ENDED;
}

bool sl_http_body_in_data(const struct http_body *b)
{
	return b->state == BODY_IDENTITY || b->state == CHUNK_DATA;
}

static int hex_value(uint8_t c)
{
	if ((uint8_t)(c - '0') < 10)
		return c - '0';
	c |= 0x20;
	return (uint8_t)(c - 'a') < 6 ? c - 'a' + 10 : -1;
}

static bool text_ok(uint8_t c)
{
	return (c >= 0x20 && c != 0x7f) || c == '\t';
}

/* The size is known: end of its line comes next. */
static int size_end(struct http_body *b, uint8_t c)
{
	if (!b->digits || (c != '\r' && c != ';'))
		return 400;
	b->state = c == ';' ? CHUNK_EXT : CHUNK_SIZE_LF;
	return 0;
}

static int size_step(struct http_body *b, uint8_t c)
{
	int digit = hex_value(c);

	if (digit < 0)
		return size_end(b, c);
	if (++b->digits > SIZE_DIGITS_MAX)
		return 400;
	b->left = b->left << 4 | (unsigned)digit;
	return 0;
}

static int chunk_begin(struct http_body *b, uint8_t c)
{
	if (c != '\n')
		return 400;
	b->digits = 0;
	b->state = b->left ? CHUNK_DATA : TRAILER_START;
	return b->left > b->max - b->total ? 413 : 0;
}

static int trailer_step(struct http_body *b, uint8_t c)
{
	if (++b->framing > FRAMING_MAX)
		return 431;
	if (b->state == TRAILER_VALUE) {
		if (c == '\r')
			b->state = TRAILER_LF;
		return c == '\r' || text_ok(c) ? 0 : 400;
	}
	if (b->state == TRAILER_START && c == '\r') {
		b->state = END_LF;
		return 0;
	}
	if (b->state == TRAILER_NAME && c == ':') {
		b->state = TRAILER_VALUE;
		return 0;
	}
	b->state = TRAILER_NAME;
	return sl_http_token_ok((const char *)&c, 1) ? 0 : 400;
}

static int expect_byte(struct http_body *b, uint8_t c, uint8_t wanted, uint8_t next)
{
	if (c != wanted)
		return 400;
	b->state = next;
	return 0;
}

/* One byte of framing. Returns 0 or a status. */
static int framing_step(struct http_body *b, uint8_t c)
{
	switch (b->state) {
	case CHUNK_SIZE:
		return size_step(b, c);
	case CHUNK_EXT:
		if (c == '\r')
			b->state = CHUNK_SIZE_LF;
		return c == '\r' || (text_ok(c) && ++b->framing <= FRAMING_MAX) ? 0 : 400;
	case CHUNK_SIZE_LF:
		return chunk_begin(b, c);
	case CHUNK_DATA_CR:
		return expect_byte(b, c, '\r', CHUNK_DATA_LF);
	case CHUNK_DATA_LF:
		return expect_byte(b, c, '\n', CHUNK_SIZE);
	case TRAILER_LF:
		return expect_byte(b, c, '\n', TRAILER_START);
	case END_LF:
		return expect_byte(b, c, '\n', ENDED);
	default:
		return trailer_step(b, c);
	}
}

int64_t sl_http_body_decode(struct http_body *b, const uint8_t *p, uint32_t len, uint8_t *out, uint32_t room,
			    uint32_t *made)
{
	uint32_t used = 0;

	*made = 0;
	while (used < len && b->state != ENDED) {
		if (sl_http_body_in_data(b)) {
			uint32_t n = sl_min(len - used, room - *made);

			n = (uint32_t)sl_min(b->left, (uint64_t)n);
			if (!n)
				break;
			if (out)
				memcpy(out + *made, p + used, n);
			*made += n;
			used += n;
			b->total += n;
			b->left -= n;
			if (!b->left)
				b->state = b->state == BODY_IDENTITY ? ENDED : CHUNK_DATA_CR;
		} else {
			/* volatile: the byte may change, so the compiler must not look twice */
			int status = framing_step(b, ((const volatile uint8_t *)p)[used++]);

			if (status)
				return -status;
		}
	}
	return used;
}
