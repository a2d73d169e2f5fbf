/* SPDX-License-Identifier: Apache-2.0 */
#include <unistd.h>

#include "vhost/ring.h"

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

/* Where to go on. All that was taken before was given back, in order, so both positions are the same; with a split ring
 * that is what the used index says, which also holds when the back-end before us was killed and nobody could ask it (the
 * front-end then says any base). It is read once; a guest that lies about it only harms itself. Packed: the base; bit 15
 * is the wrap counter, the upper half says the same of what was given back and is not needed. */
static int base_set(struct sl_vq *q, uint32_t base)
{
	if (q->packed) {
		q->next = base & 0x7fff;
		q->next_wrap = base >> 15 & 1;
		if (q->next >= q->size)
			return -EINVAL;
	} else {
		if (base >> 16)
			return -EINVAL;
		q->next = sl_guest_observe(&q->used->idx);
	}
	q->seen = q->put = q->told = q->next;
	q->put_wrap = q->next_wrap;
	return 0;
}

int sl_vq_start(struct sl_vq *q, const struct sl_vq_conf *conf, const struct sl_vhost_memory *mem, uint64_t *count,
		uint32_t frame_max, int call_fd)
{
	int err;

	if (!conf->size || conf->size > SL_VQ_SIZE_MAX || (!conf->packed && (conf->size & (conf->size - 1))))
		return -EINVAL;
	*q = (struct sl_vq){
		.mem = mem, .count = count, .frame_max = frame_max, .call_fd = call_fd, .size = conf->size,
		.packed = conf->packed, .event_idx = conf->event_idx, .mergeable = conf->mergeable,
		.to_guest = conf->to_guest, .tell_always = true, .armed = true,
	};
	sl_vq_move(q, conf);
	err = base_set(q, conf->base);
	if (err)
		return err;
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
	static const uint64_t one = 1;
	bool wanted;

	/* a ring that broke in the middle of a burst still shows what was done before */
	if (q->state == SL_VQ_STOPPED)
		return;
	if (q->packed) {
		if (!q->first_held)
			return;
		q->first_held = false;
		sl_guest_publish(&q->slots[q->first_slot].flags, q->first_flags);
	} else {
		if (q->put == q->told)
			return;
		/* buffers and used entries must be there before the index that shows them */
		sl_guest_publish(&q->used->idx, q->put);
	}
	/* the guest asks for an interrupt, then looks at the ring once more; we show, then read its wish: without the
	 * fence both could miss the other's store */
	sl_full_fence();
	wanted = q->packed ? packed_wants_call(q) : split_wants_call(q);
	q->told = q->put;
	q->tell_always = false;
	if (!wanted || q->call_fd < 0)
		return;
	q->count[SL_VHOST_CALLS]++;
	/* full: the guest has not taken an earlier one, which does as well */
	if (write(q->call_fd, &one, sizeof(one)) < 0)
		return;
}

bool sl_vq_arm(struct sl_vq *q)
{
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
	if (q->packed)
		return packed_is_avail(q, sl_guest_peek(&q->slots[q->next].flags));
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
