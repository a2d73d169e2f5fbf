/* SPDX-License-Identifier: Apache-2.0 */
/* Frames over all rings of a device. */
#include <unistd.h>

#include "vhost/device.h"

/* Tells the front-end, once, that a ring broke. */
static void ring_complain(struct sl_vhost *d, struct sl_vhost_ring *r)
{
	if (r->vq.state != SL_VQ_BROKEN || r->err_fd < 0)
		return;
	sl_bell_ring(d->conf.bell, r->err_fd);
	close(r->err_fd);
	r->err_fd = -1;
}

uint32_t sl_vhost_recv(struct sl_vhost *d, struct sl_vq_buf *bufs, uint32_t nb, uint32_t *turn, bool *more)
{
	uint32_t i, n, got = 0, budget = nb;
	bool left;

	*more = false;
	for (i = 0; i < d->conf.nb_pair && budget; i++) {
		struct sl_vhost_ring *r = &d->ring[2 * (*turn % d->conf.nb_pair) + 1];

		n = sl_vq_recv(&r->vq, bufs + got, nb - got, &budget, &left);
		*more |= left;
		ring_complain(d, r);
		if (r->enabled) {
			got += n;
		} else {   /* the specification: taken and discarded */
			d->count[SL_VHOST_FROM_DROP_DISABLED] += n;
			d->count[SL_VHOST_FROM_FRAMES] -= n;
		}
		++*turn;
	}
	*more |= i < d->conf.nb_pair;
	return got;
}

int sl_vhost_send(struct sl_vhost *d, uint32_t hash, const struct iovec *seg, uint32_t nb_seg, uint32_t len)
{
	if (!d->nb_up) {
		d->count[SL_VHOST_TO_DROP_DOWN]++;
		return -ENETDOWN;
	}
	return sl_vq_send(&d->ring[2 * d->up[hash % d->nb_up]].vq, seg, nb_seg, len);
}

void sl_vhost_flush(struct sl_vhost *d)
{
	uint32_t i;

	for (i = 0; i < d->conf.nb_pair; i++) {
		sl_vq_flush(&d->ring[2 * i].vq);
		ring_complain(d, &d->ring[2 * i]);
	}
}

bool sl_vhost_arm(struct sl_vhost *d)
{
	bool there = false;
	uint32_t i;

	for (i = 0; i < d->conf.nb_pair; i++)
		there |= sl_vq_arm(&d->ring[2 * i + 1].vq);
	return there;
}

void sl_vhost_disarm(struct sl_vhost *d)
{
	uint32_t i;

	for (i = 0; i < d->conf.nb_pair; i++)
		sl_vq_disarm(&d->ring[2 * i + 1].vq);
}
