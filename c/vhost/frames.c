/* SPDX-License-Identifier: Apache-2.0 */
/* Frames in and out of a queue: the virtio-net header, and copies between parts. */
#include "vhost/ring.h"

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

/* Takes a chain and its header: len bytes of frame remain in *seg. Returns 1 and fills; 0; -EIO; or 2: not usable,
 * given back. */
static int from_take(struct sl_vq *q, struct sl_vq_chain *c, struct iovec **seg)
{
	struct virtio_net_hdr_mrg_rxbuf hdr;
	enum sl_vhost_count why;
	int n = ring_take(q, c);

	if (n <= 0)
		return n;
	*seg = c->seg;
	why = SL_VHOST_FROM_DROP_RUNT;
	if (sl_unlikely(c->len < SL_VQ_HDR_LEN + SL_VQ_ETH_LEN))
		goto drop;
	why = SL_VHOST_FROM_DROP_OVERSIZE;
	if (sl_unlikely(c->len > SL_VQ_HDR_LEN + (uint64_t)q->frame_max))
		goto drop;
	parts_pull(seg, &c->nb_seg, &hdr, SL_VQ_HDR_LEN);
	c->len -= SL_VQ_HDR_LEN;
	sl_copied_once();
	why = SL_VHOST_FROM_DROP_OFFLOAD;
	/* the other fields mean nothing without these, and are not looked at */
	if (sl_unlikely(hdr.hdr.flags || hdr.hdr.gso_type))
		goto drop;
	q->count[SL_VHOST_FROM_FRAMES]++;
	q->count[SL_VHOST_FROM_BYTES] += c->len;
	return 1;
drop:
	q->count[why]++;
	ring_put(q, c->id, 0, c->nb_slot);
	return 2;
}

int sl_vq_take(struct sl_vq *q, struct sl_vq_frame *f, uint32_t *budget)
{
	struct sl_vq_chain c;
	struct iovec *seg;
	uint32_t head_len;
	int n;

	if (q->state != SL_VQ_STARTED)
		return q->state == SL_VQ_BROKEN ? -EIO : 0;
	do {
		if (!*budget)
			return -EAGAIN;
		c = (struct sl_vq_chain){ .seg = f->seg + 1, .cap = SL_VQ_SEGS };
		n = from_take(q, &c, &seg);
		*budget -= n > 0;
	} while (n == 2);
	if (n <= 0)
		return n;
	head_len = (uint32_t)sl_min(c.len, (uint64_t)SL_VQ_HEAD_LEN);
	f->len = (uint32_t)c.len;
	f->id = c.id;
	f->nb_slot = c.nb_slot;
	parts_pull(&seg, &c.nb_seg, f->head, head_len);
	sl_copied_once();
	if (c.nb_seg && seg != f->seg + 1)
		memmove(f->seg + 1, seg, c.nb_seg * sizeof(*seg));
	f->seg[0] = (struct iovec){ f->head, head_len };
	f->nb_seg = c.nb_seg + 1;
	return 1;
}

void sl_vq_done(struct sl_vq *q, const struct sl_vq_frame *f)
{
	ring_put(q, f->id, 0, f->nb_slot);
}

uint32_t sl_vq_recv(struct sl_vq *q, struct sl_vq_buf *bufs, uint32_t nb, uint32_t *budget, bool *more)
{
	struct iovec parts[SL_VQ_SEGS], *seg;
	uint32_t got = 0;
	int n = 0;

	*more = false;
	if (q->state != SL_VQ_STARTED)
		return 0;
	while (got < nb && *budget) {
		struct sl_vq_chain c = { .seg = parts, .cap = SL_VQ_SEGS };

		n = from_take(q, &c, &seg);
		if (n <= 0)
			break;
		--*budget;
		if (n == 2)
			continue;
		bufs[got].len = (uint32_t)c.len;
		parts_pull(&seg, &c.nb_seg, bufs[got].data, c.len);
		ring_put(q, c.id, 0, c.nb_slot);
		got++;
	}
	*more = n > 0;
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
	q->count[SL_VHOST_TO_FRAMES]++;
	q->count[SL_VHOST_TO_BYTES] += len;
	return 0;
}

/* ---- from one to another ----------------------------------------------------------------------------------------- */

uint32_t sl_vq_pass(struct sl_vq *src, struct sl_vq *dst, uint32_t nb, bool *more)
{
	uint32_t budget = nb, taken = 0;
	struct sl_vq_frame f;
	int n;

	while ((n = sl_vq_take(src, &f, &budget)) > 0) {
		sl_vq_send(dst, f.seg, f.nb_seg, f.len);
		sl_vq_done(src, &f);
		taken++;
	}
	*more = n == -EAGAIN;
	/* first the copies, then the buffers that they were made from */
	sl_vq_flush(dst);
	sl_vq_flush(src);
	return taken;
}
