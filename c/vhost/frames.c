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

/* Chains that were taken before the first of them is copied, so that their bytes are on the way from the other core. */
struct ahead {
	struct sl_vq_chain chain[AHEAD];
	struct iovec seg[AHEAD][SL_VQ_SEGS];
};

/* Takes up to nb chains; *more: that many were there. The guest soon writes the next frame into the memory of a small one.
 * If its line is taken away at once and sent back after the copy, the guest need not ask us for it. */
static uint32_t ahead_take(struct sl_vq *q, struct ahead *a, uint32_t nb, bool *more)
{
	const uint8_t *data;
	uint32_t i;

	for (i = 0; i < nb; i++) {
		struct sl_vq_chain *c = &a->chain[i];

		c->seg = a->seg[i];
		c->cap = SL_VQ_SEGS;
		c->nb_seg = 0;
		if (ring_take(q, c) <= 0)
			break;
		data = (uint8_t *)c->seg[0].iov_base + SL_CACHELINE;
		__builtin_prefetch(c->seg[0].iov_base);
		if (c->len <= SMALL_MAX)
			sl_line_own(data);
		else
			__builtin_prefetch(data);
	}
	*more = i == nb;
	return i;
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
	uint32_t i, n, got = 0;
	struct ahead a;

	*more = q->state == SL_VQ_STARTED;
	while (*more && got < nb && *budget) {
		n = ahead_take(q, &a, sl_min(sl_min(nb - got, *budget), (uint32_t)AHEAD), more);
		*budget -= n;
		for (i = 0; i < n; i++) {
			struct sl_vq_chain *c = &a.chain[i];
			const void *data;

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

/* Brings the bytes of a frame near while the one before is copied. */
static void chain_fetch(const struct sl_vq_chain *c)
{
	const uint8_t *p = c->seg[0].iov_base;
	size_t len = sl_min(c->seg[0].iov_len, (size_t)FETCH_MAX), at;

	for (at = 2 * SL_CACHELINE; at < len; at += SL_CACHELINE)
		__builtin_prefetch(p + at);
}

/* The same for the place where it will go. The descriptor is read for this alone, and again when it is taken. */
static void room_fetch(const struct sl_vq *q)
{
	uint64_t gpa = ring_peek(q);
	const uint8_t *p = sl_vhost_gpa(q->mem, gpa, FETCH_MAX);
	size_t at;

	for (at = 0; p && at < FETCH_MAX; at += SL_CACHELINE)
		sl_line_own(p + at);
}

uint32_t sl_vq_pass(struct sl_vq *src, struct sl_vq *dst, uint32_t nb, bool *more)
{
	uint32_t i, n, taken = 0;
	struct ahead a;

	*more = src->state == SL_VQ_STARTED;
	while (*more && taken < nb) {
		n = ahead_take(src, &a, sl_min(nb - taken, (uint32_t)AHEAD), more);
		taken += n;
		for (i = 0; i < n; i++) {
			struct sl_vq_chain *c = &a.chain[i];

			if (i + 1 < n)
				chain_fetch(&a.chain[i + 1]);
			if (!header_take(src, c))
				continue;
			src->small = is_small(c->len);
			sl_vq_send(dst, c->seg, c->nb_seg, (uint32_t)c->len);
			if (i + 1 < n && dst->state == SL_VQ_STARTED)
				room_fetch(dst);
			ring_put(src, c->id, 0, c->nb_slot);
		}
	}
	/* first the copies, then the buffers that they were made from */
	sl_vq_flush(dst);
	sl_vq_flush(src);
	return taken;
}
