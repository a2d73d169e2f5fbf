/* SPDX-License-Identifier: Apache-2.0 */
/* Frames in and out of a queue: the virtio-net header, and copies between parts. */
#include "vhost/ring.h"

enum {
	AHEAD = 16,
	FETCH_MAX = 1536,
	SMALL_MAX = 2 * SL_CACHELINE,   /* header and frame together: not more than the lines that are fetched ahead */
};

static bool is_small(uint64_t frame_len)
{
	return frame_len <= SMALL_MAX - SL_VQ_HDR_LEN;
}

/* Copies len bytes out of *seg and moves *seg and its first part past them. The parts hold at least len. */
static void parts_pull(struct iovec **seg, uint32_t *nb, void *to, size_t len)
{
	while (len) {
		size_t n = sl_min(len, (*seg)->iov_len);

		memcpy(to, (*seg)->iov_base, n);
		to = (uint8_t *)to + n;
		len -= n;
		(*seg)->iov_base = (uint8_t *)(*seg)->iov_base + n;
		(*seg)->iov_len -= n;
		if (!(*seg)->iov_len) {
			(*seg)++;
			(*nb)--;
		}
	}
}

/* ---- from the guest ---------------------------------------------------------------------------------------------- */

/* Chains that were taken before they are copied, so that their headers are on the way from the other core: a queue. Its
 * second half is filled while the first one is copied. */
struct ahead {
	uint32_t first, nb;
	struct sl_vq_chain chain[AHEAD];
	struct iovec seg[AHEAD][SL_VQ_SEGS];
};

/* The guest soon writes the next frame into the memory of a small one. If its line is taken away at once and sent back
 * after the copy, the guest need not ask us for it. */
static void chain_fetch(const struct sl_vq_chain *c)
{
	const uint8_t *data = (uint8_t *)c->seg[0].iov_base + SL_CACHELINE;

	__builtin_prefetch(c->seg[0].iov_base);
	if (c->len <= SMALL_MAX)
		sl_line_own(data);
	else
		__builtin_prefetch(data);
}

/* Takes up to nb more chains once half of the queue is free. Returns how many; *more: false if the ring had fewer. */
static uint32_t ahead_take(struct sl_vq *q, struct ahead *a, uint32_t nb, bool *more)
{
	uint32_t i, want = a->nb > AHEAD / 2 || !*more ? 0 : sl_min(nb, (uint32_t)AHEAD / 2);

	for (i = 0; i < want; i++) {
		uint32_t at = (a->first + a->nb) % AHEAD;
		struct sl_vq_chain *c = &a->chain[at];

		*c = (struct sl_vq_chain){ .seg = a->seg[at], .cap = SL_VQ_SEGS };
		*more = ring_take(q, c) > 0;
		if (!*more)
			break;
		chain_fetch(c);
		a->nb++;
	}
	return i;
}

/* The oldest one, there until ahead_take is called again. NULL: none is left. */
static struct sl_vq_chain *ahead_next(struct ahead *a)
{
	if (!a->nb)
		return NULL;
	a->nb--;
	return &a->chain[a->first++ % AHEAD];
}

/* Takes the header off: len bytes of frame remain in c->seg. False: not usable, counted, and given back. */
static bool header_take(struct sl_vq *q, struct sl_vq_chain *c)
{
	struct virtio_net_hdr_mrg_rxbuf hdr;
	enum sl_vhost_count why = SL_VHOST_FROM_DROP_RUNT;

	if (sl_unlikely(c->len < SL_VQ_HDR_LEN + SL_VQ_ETH_LEN))
		goto drop;
	why = SL_VHOST_FROM_DROP_OVERSIZE;
	if (sl_unlikely(c->len > SL_VQ_HDR_LEN + (uint64_t)q->frame_max))
		goto drop;
	parts_pull(&c->seg, &c->nb_seg, &hdr, SL_VQ_HDR_LEN);
	c->len -= SL_VQ_HDR_LEN;
	sl_copied_once();
	why = SL_VHOST_FROM_DROP_OFFLOAD;
	/* the other fields mean nothing without these, and are not looked at */
	if (sl_unlikely(hdr.hdr.flags || hdr.hdr.gso_type))
		goto drop;
	q->count[SL_VHOST_FROM_FRAMES]++;
	q->count[SL_VHOST_FROM_BYTES] += c->len;
	return true;
drop:
	q->count[why]++;
	ring_put(q, c->id, 0, c->nb_slot);
	return false;
}

uint32_t sl_vq_recv(struct sl_vq *q, struct sl_vq_buf *bufs, uint32_t nb, uint32_t *budget, bool *more)
{
	struct sl_vq_chain *c;
	const void *data;
	uint32_t got = 0;
	struct ahead a;

	*more = q->state == SL_VQ_STARTED;
	a.first = a.nb = 0;
	for (;;) {
		*budget -= ahead_take(q, &a, sl_min(nb - got - a.nb, *budget), more);
		c = ahead_next(&a);
		if (!c)
			break;
		if (!header_take(q, c))
			continue;
		bufs[got].len = (uint32_t)c->len;
		data = c->seg->iov_base;
		parts_pull(&c->seg, &c->nb_seg, bufs[got++].data, c->len);
		q->small = is_small(c->len);
		if (q->small)
			sl_line_give(data);
		ring_put(q, c->id, 0, c->nb_slot);
	}
	sl_vq_flush(q);
	return got;
}

/* ---- to the guest ------------------------------------------------------------------------------------------------ */

/* Buffers of the guest's gathered for one frame. */
struct room {
	struct iovec seg[SL_VQ_TO_SEGS];
	struct { uint64_t len; uint16_t id, nb_slot; } buffer[SL_VQ_BUFFERS];
	uint32_t nb_seg, nb_buffer;
};

/* Takes buffers until they hold need bytes. Whatever it returns but 0, none is taken. */
static int room_gather(struct sl_vq *q, struct room *r, uint64_t need)
{
	uint16_t next = q->next;
	bool next_wrap = q->next_wrap;
	struct sl_vq_chain c;
	uint64_t len = 0;
	int n;

	r->nb_seg = r->nb_buffer = 0;
	do {
		n = -EMSGSIZE;
		if (r->nb_buffer == (q->mergeable ? SL_VQ_BUFFERS : 1) || SL_VQ_TO_SEGS - r->nb_seg < SL_VQ_SEGS)
			goto undo;
		/* each buffer of at most SL_VQ_SEGS parts, whatever the others had */
		c = (struct sl_vq_chain){ .seg = r->seg + r->nb_seg, .cap = SL_VQ_SEGS };
		n = ring_take(q, &c);
		if (n < 0)
			return n;
		if (!n) {
			n = -EAGAIN;
			goto undo;
		}
		r->nb_seg += c.nb_seg;
		r->buffer[r->nb_buffer].len = c.len;
		r->buffer[r->nb_buffer].id = c.id;
		r->buffer[r->nb_buffer++].nb_slot = c.nb_slot;
		len += c.len;
	} while (len < need);
	return 0;
undo:
	q->next = next;
	q->next_wrap = next_wrap;
	return n;
}

/* Writes len bytes into the parts and moves past them. */
static void parts_push(struct iovec **seg, const void *from, size_t len)
{
	while (len) {
		size_t n = sl_min(len, (*seg)->iov_len);

		/* both may be the same guest's memory */
		memmove((*seg)->iov_base, from, n);
		from = (const uint8_t *)from + n;
		len -= n;
		(*seg)->iov_base = (uint8_t *)(*seg)->iov_base + n;
		(*seg)->iov_len -= n;
		if (!(*seg)->iov_len)
			(*seg)++;
	}
}

static int send_refused(struct sl_vq *q, int err)
{
	if (err == -EAGAIN)
		q->count[SL_VHOST_TO_DROP_FULL]++;
	else if (err == -EMSGSIZE)
		q->count[SL_VHOST_TO_DROP_NO_ROOM]++;
	else
		q->count[SL_VHOST_TO_DROP_DOWN]++;
	return err;
}

int sl_vq_send(struct sl_vq *q, const struct iovec *seg, uint32_t nb_seg, uint32_t len)
{
	struct virtio_net_hdr_mrg_rxbuf hdr = { 0 };
	uint64_t left = (uint64_t)len + SL_VQ_HDR_LEN;
	struct iovec *to;
	struct room r;
	uint32_t i;
	int err;

	if (q->state != SL_VQ_STARTED)
		return send_refused(q, -EIO);
	err = room_gather(q, &r, left);
	if (err)
		return send_refused(q, err);
	hdr.num_buffers = (uint16_t)r.nb_buffer;
	to = r.seg;
	parts_push(&to, &hdr, SL_VQ_HDR_LEN);
	for (i = 0; i < nb_seg; i++)
		parts_push(&to, seg[i].iov_base, seg[i].iov_len);
	for (i = 0; i < r.nb_buffer; i++) {
		uint64_t n = sl_min(left, r.buffer[i].len);

		ring_put(q, r.buffer[i].id, (uint32_t)n, r.buffer[i].nb_slot);
		left -= n;
	}
	q->small = is_small(len);
	q->count[SL_VHOST_TO_FRAMES]++;
	q->count[SL_VHOST_TO_BYTES] += len;
	return 0;
}

/* ---- from one to another ----------------------------------------------------------------------------------------- */

/* Brings the place near to which a frame of len bytes will go: its lines are written whole, yet each store would wait for
 * its line. The frame itself needs none of this, a copy reads far ahead of what it writes (measured). The descriptor is
 * read for this alone, and again when it is taken. */
static void room_fetch(const struct sl_vq *q, uint64_t len)
{
	size_t at, n = sl_min(len, (uint64_t)FETCH_MAX);
	const uint8_t *p = sl_vhost_gpa(q->mem, ring_peek(q), n);

	for (at = 0; p && at < n; at += SL_CACHELINE)
		sl_line_own(p + at);
}

uint32_t sl_vq_pass(struct sl_vq *src, struct sl_vq *dst, uint32_t nb, bool *more)
{
	uint32_t taken = 0;
	struct sl_vq_chain *c;
	struct ahead a;

	*more = src->state == SL_VQ_STARTED;
	a.first = a.nb = 0;
	for (;;) {
		taken += ahead_take(src, &a, nb - taken, more);
		c = ahead_next(&a);
		if (!c)
			break;
		if (!header_take(src, c))
			continue;
		src->small = is_small(c->len);
		sl_vq_send(dst, c->seg, c->nb_seg, (uint32_t)c->len);
		if (a.nb && dst->state == SL_VQ_STARTED)
			room_fetch(dst, a.chain[a.first % AHEAD].len);
		ring_put(src, c->id, 0, c->nb_slot);
	}
	/* first the copies, then the buffers that they were made from */
	sl_vq_flush(dst);
	sl_vq_flush(src);
	return taken;
}
