/* SPDX-License-Identifier: Apache-2.0 */
/* Internal to the queue: taking a chain of descriptors from a ring and giving it back, for both layouts. Inline,
 * because all of it runs for each frame. */
#ifndef SL_VHOST_RING_H
#define SL_VHOST_RING_H

#include "abi/base.h"
#include "base/cache.h"
#include "vhost/guest.h"
#include "vhost/queue.h"

enum {
	PACKED_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
	PACKED_USED = 1 << VRING_PACKED_DESC_F_USED,
	PACKED_REST = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE,
};
_Static_assert(offsetof(struct vring_packed_desc, len) == 8 && offsetof(struct vring_packed_desc, id) == 12 &&
	       offsetof(struct vring_packed_desc, flags) == 14, "len, id and flags are one word");

struct sl_vq_chain {
	struct iovec *seg;                /* room for cap parts; nb_seg are filled */
	uint32_t cap, nb_seg;
	uint64_t len;                     /* of the parts of this chain */
	uint16_t id, nb_slot;
};

static inline int ring_break(struct sl_vq *q, enum sl_vhost_count why)
{
	q->state = SL_VQ_BROKEN;
	q->count[why]++;
	return -EIO;
}

/* Appends one descriptor's range: a private copy of its fields. */
static inline int chain_append(struct sl_vq *q, struct sl_vq_chain *c, uint64_t gpa, uint32_t len, uint16_t flags)
{
	void *hva;

	if (sl_unlikely(c->nb_seg == c->cap))
		return ring_break(q, SL_VHOST_RING_CHAIN);
	if (sl_unlikely(flags & VRING_DESC_F_INDIRECT || !(flags & VRING_DESC_F_WRITE) == q->to_guest))
		return ring_break(q, SL_VHOST_RING_FLAGS);
	if (sl_unlikely(!len))
		return ring_break(q, SL_VHOST_RING_LENGTH);
	hva = sl_vhost_gpa(q->mem, gpa, len);
	if (sl_unlikely(!hva))
		return ring_break(q, SL_VHOST_RING_ADDRESS);
	c->seg[c->nb_seg++] = (struct iovec){ hva, len };
	c->len += len;
	return 0;
}

/* ---- split ------------------------------------------------------------------------------------------------------- */

/* Whether a chain is there; -EIO. The descriptors are read after the index that announces them. */
static inline int split_ready(struct sl_vq *q)
{
	if (q->next != q->seen)
		return 1;
	q->seen = sl_guest_observe(&q->avail->idx);
	if (sl_unlikely((uint16_t)(q->seen - q->next) > q->size))
		return ring_break(q, SL_VHOST_RING_JUMP);
	return q->next != q->seen;
}

static inline int split_take(struct sl_vq *q, struct sl_vq_chain *c)
{
	int ready = split_ready(q);
	struct vring_desc d;
	uint16_t index;

	if (ready <= 0)
		return ready;
	index = sl_guest_peek(&q->avail->ring[q->next & (q->size - 1)]);
	c->id = index;
	c->nb_slot = 1;
	c->len = 0;
	do {
		if (sl_unlikely(index >= q->size))
			return ring_break(q, SL_VHOST_RING_INDEX);
		sl_copy_once(&d, &q->desc[index]);
		sl_copied_once();
		if (sl_unlikely(chain_append(q, c, d.addr, d.len, d.flags)))
			return -EIO;
		index = d.next;
	} while (d.flags & VRING_DESC_F_NEXT);   /* ends: seg[] is bounded */
	q->next++;
	return 1;
}

static inline void split_put(struct sl_vq *q, uint16_t id, uint32_t len)
{
	q->used->ring[q->put & (q->size - 1)] = (struct vring_used_elem){ id, len };
	q->put++;
}

/* ---- packed ------------------------------------------------------------------------------------------------------ */

static inline bool packed_is_avail(const struct sl_vq *q, uint16_t flags)
{
	return !!(flags & PACKED_AVAIL) == q->next_wrap && !!(flags & PACKED_USED) != q->next_wrap;
}

static inline uint16_t packed_used(bool wrap)
{
	return wrap ? PACKED_AVAIL | PACKED_USED : 0;
}

static inline void packed_step(const struct sl_vq *q, uint16_t *slot, bool *wrap, uint16_t nb)
{
	uint32_t to = (uint32_t)*slot + nb;   /* nb <= size */

	if (to >= q->size) {
		to -= q->size;
		*wrap = !*wrap;
	}
	*slot = (uint16_t)to;
}

/* Whether the next slot was given back in this very lap, though not by us. QEMU does that when its back-end dies: it empties
 * a guest's sending ring, from a place that it only guesses (seen with 7.2). */
static inline bool packed_is_foreign(const struct sl_vq *q, uint16_t flags)
{
	return (flags & (PACKED_AVAIL | PACKED_USED)) == packed_used(q->next_wrap);
}

/* Passes over such slots, once all that we took before is given back. The flags of the first other one. */
static inline uint16_t packed_foreign_pass(struct sl_vq *q, uint16_t flags)
{
	if (q->next != q->put || q->next_wrap != q->put_wrap)
		return flags;
	for (uint32_t n = 0; n < q->size && packed_is_foreign(q, flags); n++) {
		packed_step(q, &q->next, &q->next_wrap, 1);
		q->put = q->next;
		q->put_wrap = q->next_wrap;
		flags = sl_guest_observe(&q->slots[q->next].flags);
	}
	return flags;
}

static inline int packed_take(struct sl_vq *q, struct sl_vq_chain *c)
{
	uint16_t slot, flags = sl_guest_observe(&q->slots[q->next].flags), id;
	struct vring_packed_desc *p;
	bool wrap;
	uint32_t len;
	uint64_t gpa;

	if (!packed_is_avail(q, flags) && !packed_is_avail(q, flags = packed_foreign_pass(q, flags)))
		return 0;
	slot = q->next;
	wrap = q->next_wrap;
	p = &q->slots[slot];
	c->nb_slot = 0;
	c->len = 0;
	for (;;) {
		SL_READ_NOTE(p, offsetof(struct vring_packed_desc, flags));
		gpa = p->addr;
		len = p->len;
		id = p->id;
		sl_copied_once();
		if (sl_unlikely(c->nb_slot == q->size))
			return ring_break(q, SL_VHOST_RING_CHAIN);
		if (sl_unlikely(chain_append(q, c, gpa, len, flags)))
			return -EIO;
		c->nb_slot++;
		if (!(flags & VRING_DESC_F_NEXT))
			break;
		packed_step(q, &slot, &wrap, 1);
		p = &q->slots[slot];
		flags = sl_guest_peek(&p->flags);   /* written before the first one's, which was observed */
	}
	c->id = id;                                 /* the last descriptor of a chain has it */
	packed_step(q, &q->next, &q->next_wrap, c->nb_slot);
	return 1;
}

/* Shows the guest the buffers that were given back, in order, each by one store. So at any moment, also when we are
 * killed, the ring itself tells where to go on: packed_find. A line of slots that is full is sent half of the way: the
 * guest reads it next, to free the buffers. That pays for small frames alone. */
static inline void packed_show(struct sl_vq *q)
{
	uint32_t i, n;

	for (i = 0; i < q->nb_held; i++) {
		const struct sl_vq_held *h = &q->held[i];
		uint16_t slot = h->slot;
		bool wrap = h->wrap;

		/* the rest of a chain, which the guest does not look at, no longer looks available */
		for (n = 1; sl_unlikely(n < h->nb_slot); n++) {
			packed_step(q, &slot, &wrap, 1);
			sl_guest_post(&q->slots[slot].flags, packed_used(wrap) | (sl_guest_peek(&q->slots[slot].flags) & PACKED_REST));
		}
		sl_guest_publish64((__u64 *)(void *)&q->slots[h->slot].len, h->word);
		if (q->small && !((uintptr_t)&q->slots[h->slot + 1] & (SL_CACHELINE - 1)))
			sl_line_give(&q->slots[h->slot]);
	}
	q->nb_held = 0;
}

static inline void packed_put(struct sl_vq *q, uint16_t id, uint32_t len, uint16_t nb_slot)
{
	uint16_t flags = (uint16_t)(packed_used(q->put_wrap) | (q->to_guest ? VRING_DESC_F_WRITE : 0));

	q->held[q->nb_held++] = (struct sl_vq_held){
		.word = len | (uint64_t)id << 32 | (uint64_t)flags << 48, .slot = q->put, .nb_slot = nb_slot,
		.wrap = q->put_wrap,
	};
	packed_step(q, &q->put, &q->put_wrap, nb_slot);
	if (sl_unlikely(q->nb_held == SL_VQ_HELD))
		packed_show(q);
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

/* 1: *c has the next chain appended; 0: none there; -EIO. */
static inline int ring_take(struct sl_vq *q, struct sl_vq_chain *c)
{
	return q->packed ? packed_take(q, c) : split_take(q, c);
}

/* Where the next chain's first part seems to be: a hint, of no more worth than any number. */
static inline uint64_t ring_peek(const struct sl_vq *q)
{
	if (q->packed)
		return q->slots[q->next].addr;
	return q->desc[q->avail->ring[q->next & (q->size - 1)] & (q->size - 1)].addr;
}

static inline void ring_put(struct sl_vq *q, uint16_t id, uint32_t len, uint16_t nb_slot)
{
	q->owed = true;
	if (q->packed)
		packed_put(q, id, len, nb_slot);
	else
		split_put(q, id, len);
}

#endif
