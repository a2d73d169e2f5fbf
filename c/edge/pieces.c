/* SPDX-License-Identifier: Apache-2.0 */
#include "edge/pieces.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD = sizeof(uint32_t), CAP_MIN = 1024 };

static bool room_make(struct sl_pieces *s, uint32_t need)
{
	uint32_t used = s->len - s->pos, cap = s->cap ? s->cap : need < CAP_MIN ? CAP_MIN : 4 * need;   /* where much comes, more will */
	uint8_t *grown;

	if (s->cap - s->len >= need)
		return true;
	/* moved to the front only if that frees half of it: each byte is then moved once at most on average */
	if (s->pos >= s->cap / 2 && s->cap - used >= need && s->cap) {
		memmove(s->data, s->data + s->pos, used);
		s->pos = 0;
		s->len = used;
		return true;
	}
	while (cap - s->len < need || cap < s->len)
		cap *= 2;
	grown = realloc(s->data, cap);
	if (!grown)
		return false;
	s->data = grown;
	s->cap = cap;
	return true;
}

bool sl_pieces_add(struct sl_pieces *s, const uint8_t *p, uint32_t len)
{
	if (!room_make(s, len + HEAD))
		return false;
	if (s->cut) {
		memcpy(s->data + s->len, &len, HEAD);
		s->len += HEAD;
	}
	memcpy(s->data + s->len, p, len);
	s->len += len;
	s->bytes += len;
	return true;
}

const uint8_t *sl_pieces_next(const struct sl_pieces *s, uint32_t *at, uint32_t *len)
{
	const uint8_t *p = s->data + s->pos + *at;

	if (s->pos + *at >= s->len)
		return NULL;
	if (s->cut) {
		memcpy(len, p, HEAD);
		*at += HEAD + *len;
		return p + HEAD;
	}
	*len = s->len - s->pos - *at;
	*at += *len;
	return p;
}

bool sl_pieces_drop(struct sl_pieces *s, uint32_t len)
{
	uint32_t n;

	if (len > s->bytes)
		return false;
	for (uint32_t left = len; s->cut && left; left -= n) {
		memcpy(&n, s->data + s->pos, HEAD);
		if (n > left)
			return false;
		s->pos += HEAD + n;
		s->bytes -= n;
	}
	if (!s->cut) {
		s->pos += len;
		s->bytes -= len;
	}
	if (s->pos == s->len)
		sl_pieces_free(s);   /* an idle connection keeps nothing */
	return true;
}

void sl_pieces_free(struct sl_pieces *s)
{
	bool cut = s->cut;

	free(s->data);
	memset(s, 0, sizeof(*s));
	s->cut = cut;
}
