/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/ring.h"

enum { FIND_TRIES = 4 };

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

void sl_vq_move(struct sl_vq *q, const struct sl_vq_conf *conf)
{
	q->desc = conf->desc;
	q->avail = conf->driver;
	q->used = conf->device;
	q->slots = conf->desc;
	q->driver_event = conf->driver;
	q->device_event = conf->device;
}

static bool packed_bit(uint16_t flags, uint16_t bit)
{
	return flags & bit;
}

/* Finds the slot that the driver will fill next, by the bit that it turns over in each lap: before that slot it has the
 * lap's value, behind it the former one's. False: the driver is just writing a chain, whose first slot comes last. */
static bool packed_driver_find(struct sl_vq *q)
{
	bool first = packed_bit(sl_guest_observe(&q->slots[0].flags), PACKED_AVAIL), bit = first;
	uint32_t i, nb_turn = 0;

	q->next = 0;
	q->next_wrap = !first;
	for (i = 1; i < q->size; i++) {
		if (packed_bit(sl_guest_peek(&q->slots[i].flags), PACKED_AVAIL) == bit)
			continue;
		bit = !bit;
		if (nb_turn++)
			return false;
		q->next = (uint16_t)i;
		q->next_wrap = first;
	}
	return true;
}

/* The first available slot from there on is the oldest one. */
static bool packed_oldest_find(struct sl_vq *q)
{
	uint32_t i, slot;
	uint16_t flags;

	if (!packed_driver_find(q))
		return false;
	for (i = 0, slot = q->next; i < q->size; i++, slot = slot + 1 == q->size ? 0 : slot + 1) {
		flags = sl_guest_peek(&q->slots[slot].flags);
		if (packed_bit(flags, PACKED_AVAIL) == packed_bit(flags, PACKED_USED))
			continue;
		q->next = (uint16_t)slot;
		q->next_wrap = packed_bit(flags, PACKED_AVAIL);
		break;
	}
	return true;
}

/* The driver goes on meanwhile, and may begin another lap where we have looked already. What it does does not change which
 * slot is the oldest: what was found twice is right, unless the guest wants to be misled. */
static void packed_find(struct sl_vq *q)
{
	uint16_t next = 0, tries;
	bool wrap = false, found = false;

	for (tries = 0; tries < FIND_TRIES; tries++) {
		if (!packed_oldest_find(q))
			continue;
		if (found && next == q->next && wrap == q->next_wrap)
			return;
		found = true;
		next = q->next;
		wrap = q->next_wrap;
	}
}

/* Where to go on. All that was taken before was given back, in order, so both positions are the same, and the ring itself
 * tells it; also when the back-end before us was killed and nobody could ask it: then the front-end says any base. A
 * split ring's position is its used index. It is read once; a guest that lies about it only harms itself. */
static void position_find(struct sl_vq *q)
{
	if (q->packed)
		packed_find(q);
	else
		q->next = sl_guest_observe(&q->used->idx);
	q->seen = q->put = q->told = q->next;
	q->put_wrap = q->next_wrap;
}

int sl_vq_start(struct sl_vq *q, const struct sl_vq_conf *conf, const struct sl_vhost_memory *mem, uint64_t *count)
{
	if (!conf->size || conf->size > SL_VQ_SIZE_MAX || (!conf->packed && (conf->size & (conf->size - 1))))
		return -EINVAL;
	*q = (struct sl_vq){
		.mem = mem, .count = count, .frame_max = conf->frame_max, .bell = conf->bell, .call_fd = conf->call_fd,
		.size = conf->size,
		.packed = conf->packed, .event_idx = conf->event_idx, .mergeable = conf->mergeable,
		.to_guest = conf->to_guest, .tell_always = true, .armed = true,
	};
	sl_vq_move(q, conf);
	position_find(q);
	q->state = SL_VQ_STARTED;
	/* nobody waits for receive buffers: a frame without buffer is dropped */
	if (q->to_guest)
		sl_vq_disarm(q);
	return 0;
}

uint32_t sl_vq_stop(struct sl_vq *q)
{
	uint32_t half;

	sl_vq_flush(q);
	q->state = SL_VQ_STOPPED;
	/* put, not next: what a broken ring took but did not give back is still the guest's */
	if (!q->packed)
		return q->put;
	half = q->put | (uint32_t)q->put_wrap << 15;
	return half | half << 16;
}

/* ---- notification, both ways ------------------------------------------------------------------------------------- */

/* Whether event lies in [before, now), all free running: virtio 1.2 section 2.7.7. */
static bool event_passed(uint16_t event, uint16_t now, uint16_t before)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static bool split_wants_call(struct sl_vq *q)
{
	if (!q->event_idx)
		return !(sl_guest_peek(&q->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
	return event_passed(sl_guest_peek(&q->avail->ring[q->size]), q->put, q->told) || q->tell_always;
}

static bool packed_wants_call(struct sl_vq *q)
{
	struct vring_packed_desc_event e;
	uint16_t event, before = q->told;

	sl_copy_once(&e, q->driver_event);
	sl_copied_once();
	if (e.flags == VRING_PACKED_EVENT_FLAG_DISABLE)
		return false;
	if (!q->event_idx || e.flags != VRING_PACKED_EVENT_FLAG_DESC || q->tell_always)
		return true;
	/* unroll the ring so that positions count up to put */
	event = e.off_wrap & 0x7fff;
	if (q->put <= before)
		before = (uint16_t)(before - q->size);
	if (q->put_wrap != e.off_wrap >> 15)
		event = (uint16_t)(event - q->size);
	return event_passed(event, q->put, before);
}

void sl_vq_flush(struct sl_vq *q)
{
	bool wanted;

	/* a ring that broke in the middle of a burst still shows what was done before */
	if (q->state == SL_VQ_STOPPED || !q->owed)
		return;
	q->owed = false;
	/* buffers and used entries must be there before what shows them */
	if (q->packed)
		packed_show(q);
	else
		sl_guest_publish(&q->used->idx, q->put);
	/* the guest asks for an interrupt, then looks at the ring once more; we show, then read its wish: without the
	 * fence both could miss the other's store */
	sl_full_fence();
	wanted = q->packed ? packed_wants_call(q) : split_wants_call(q);
	q->told = q->put;
	q->tell_always = false;
	if (!wanted || q->call_fd < 0)
		return;
	q->count[SL_VHOST_CALLS]++;
	sl_bell_ring(q->bell, q->call_fd);
}

bool sl_vq_arm(struct sl_vq *q)
{
	uint16_t flags;

	if (q->state != SL_VQ_STARTED)
		return false;
	q->armed = true;
	if (q->packed)
		sl_guest_post(&q->device_event->flags, VRING_PACKED_EVENT_FLAG_ENABLE);
	else if (q->event_idx)
		sl_guest_post((uint16_t *)(void *)&q->used->ring[q->size], q->next);
	else
		sl_guest_post(&q->used->flags, 0);
	/* as in sl_vq_flush, with the parts exchanged */
	sl_full_fence();
	if (q->packed) {
		flags = sl_guest_peek(&q->slots[q->next].flags);
		return packed_is_avail(q, flags) || packed_is_foreign(q, flags);
	}
	return sl_guest_peek(&q->avail->idx) != q->next;
}

void sl_vq_disarm(struct sl_vq *q)
{
	if (q->state != SL_VQ_STARTED || !q->armed)
		return;
	q->armed = false;
	if (q->packed)
		sl_guest_post(&q->device_event->flags, VRING_PACKED_EVENT_FLAG_DISABLE);
	else if (!q->event_idx)
		sl_guest_post(&q->used->flags, VRING_USED_F_NO_NOTIFY);
	/* with event index the old wish is behind the guest already: it kicks no more */
}
