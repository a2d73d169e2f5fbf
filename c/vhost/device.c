/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/virtio_config.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vhost/device.h"
#include "vhost/socket.h"

enum { OK = -1 };                         /* otherwise which SL_VHOST_MSG_ or SL_VHOST_RING_ was violated */

#define BIT(n) (1ull << (n))

static uint32_t nb_ring(const struct sl_vhost *d)
{
	return 2u * d->conf.nb_pair;
}

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

static void fd_drop(struct sl_vhost *d, int *fd)
{
	if (*fd < 0)
		return;
	/* the peer holds it too: closing ours alone would leave it in the set */
	if (d->conf.epoll_fd >= 0)
		epoll_ctl(d->conf.epoll_fd, EPOLL_CTL_DEL, *fd, NULL);
	close(*fd);
	*fd = -1;
}

/* Takes the message's eventfd, if it has one, in place of *fd. */
static int fd_take(struct sl_vhost *d, struct sl_vu_msg *m, int *fd)
{
	if (m->nb_fd && !sl_bell_fits(d->conf.bell, m->fds[0]))
		return SL_VHOST_MSG_FDS;
	fd_drop(d, fd);
	if (m->nb_fd) {
		*fd = m->fds[0];
		m->fds[0] = -1;
	}
	return OK;
}

/* ---- rings ------------------------------------------------------------------------------------------------------- */

/* The ring as host memory, or false: not wholly in the guest's memory or misaligned there. */
static bool ring_locate(const struct sl_vhost *d, const struct sl_vhost_ring *r, struct sl_vq_conf *c)
{
	uint64_t n = r->size;

	c->packed = d->features & BIT(VIRTIO_F_RING_PACKED);
	c->desc = sl_vhost_uva(&d->mem, r->addr.desc_uva, 16 * n);
	c->driver = sl_vhost_uva(&d->mem, r->addr.driver_uva, c->packed ? 4 : 6 + 2 * n);
	c->device = sl_vhost_uva(&d->mem, r->addr.device_uva, c->packed ? 4 : 6 + 8 * n);
	/* a region's offset in its file is the peer's choice: alignment of uva says nothing about ours */
	return c->desc && c->driver && c->device && !((uintptr_t)c->desc & 15) && !((uintptr_t)c->driver & 3) &&
	       !((uintptr_t)c->device & 3);
}

/* The back-end before us may have been killed between showing buffers and telling of them, or have told it to another
 * descriptor. One interrupt too many does no harm. */
static void ring_call(struct sl_vhost *d, const struct sl_vhost_ring *r)
{
	if (r->call_fd >= 0)
		sl_bell_ring(d->conf.bell, r->call_fd);
}

static int ring_start(struct sl_vhost *d, uint32_t index)
{
	struct sl_vhost_ring *r = &d->ring[index];
	struct sl_vq_conf c = {
		.size = r->size, .event_idx = d->features & BIT(VIRTIO_RING_F_EVENT_IDX),
		.mergeable = d->features & BIT(VIRTIO_NET_F_MRG_RXBUF), .to_guest = !(index & 1),
		.bell = d->conf.bell, .call_fd = r->call_fd, .frame_max = d->conf.frame_max,
	};

	if (!(d->features & BIT(VIRTIO_F_VERSION_1)) || !r->size || !r->has_addr || !ring_locate(d, r, &c) ||
	    sl_vq_start(&r->vq, &c, &d->mem, d->count))
		return SL_VHOST_RING_SETUP;
	if (!(d->features & BIT(SL_VU_F_PROTOCOL_FEATURES)))
		r->enabled = true;
	ring_call(d, r);
	d->count[SL_VHOST_STARTS]++;
	return OK;
}

/* Finds all running rings in the changed memory. */
static int rings_move(struct sl_vhost *d)
{
	uint32_t i;

	for (i = 0; i < nb_ring(d); i++) {
		struct sl_vq_conf c = { 0 };

		if (d->ring[i].vq.state == SL_VQ_STOPPED)
			continue;
		if (!ring_locate(d, &d->ring[i], &c))
			return SL_VHOST_MSG_STATE;
		sl_vq_move(&d->ring[i].vq, &c);
	}
	return OK;
}

static bool any_runs(const struct sl_vhost *d)
{
	uint32_t i;

	for (i = 0; i < nb_ring(d); i++)
		if (d->ring[i].vq.state != SL_VQ_STOPPED)
			return true;
	return false;
}

static void ring_stop(struct sl_vhost *d, struct sl_vhost_ring *r)
{
	if (r->vq.state != SL_VQ_STOPPED)
		r->base = sl_vq_stop(&r->vq);
	fd_drop(d, &r->kick_fd);
}

static void ring_reset(struct sl_vhost *d, struct sl_vhost_ring *r)
{
	ring_stop(d, r);
	fd_drop(d, &r->call_fd);
	fd_drop(d, &r->err_fd);
	*r = (struct sl_vhost_ring){ .kick_fd = -1, .call_fd = -1, .err_fd = -1 };
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

static int features_set(struct sl_vhost *d, uint64_t features)
{
	if (features & ~sl_vhost_features())
		return SL_VHOST_MSG_VALUE;
	if (features != d->features && any_runs(d))
		return SL_VHOST_MSG_STATE;
	d->features = features;
	return OK;
}

/* The table replaces the memory as a whole; rings that run move to it before the old one goes. */
static int table_set(struct sl_vhost *d, const struct sl_vu_msg *m)
{
	struct sl_vhost_memory old = d->mem;
	int wrong = OK;
	uint32_t i;

	d->mem = (struct sl_vhost_memory){ 0 };
	for (i = 0; wrong == OK && i < m->body.table.nb; i++)
		if (sl_vhost_memory_add(&d->mem, &m->body.table.region[i], m->fds[i], d->conf.unsealed_ok))
			wrong = SL_VHOST_MSG_MEMORY;
	if (wrong == OK)
		wrong = rings_move(d);
	if (wrong == OK) {
		sl_vhost_memory_clear(&old);
		return OK;
	}
	sl_vhost_memory_clear(&d->mem);
	d->mem = old;
	rings_move(d);   /* back to where they were: can not fail */
	return wrong;
}

static int region_remove(struct sl_vhost *d, const struct sl_vu_region *region)
{
	struct sl_vhost_region gone;
	int wrong;

	if (sl_vhost_memory_remove(&d->mem, region, &gone))
		return OK;   /* another queue pair's vhost_dev of QEMU has removed it */
	wrong = rings_move(d);
	if (wrong != OK) {
		d->mem.region[d->mem.nb++] = gone;
		rings_move(d);
		return wrong;
	}
	sl_vhost_region_unmap(&gone);
	return OK;
}

static int kick_set(struct sl_vhost *d, struct sl_vu_msg *m, uint32_t index)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = d->conf.kick_event + index };
	struct sl_vhost_ring *r = &d->ring[index];
	int wrong;

	if (!m->nb_fd)   /* a ring that would have to be polled */
		return SL_VHOST_MSG_REFUSED;
	wrong = fd_take(d, m, &r->kick_fd);
	if (wrong == OK && r->vq.state == SL_VQ_STOPPED)
		wrong = ring_start(d, index);
	if (wrong == OK && (index & 1) && d->conf.epoll_fd >= 0 &&
	    epoll_ctl(d->conf.epoll_fd, EPOLL_CTL_ADD, r->kick_fd, &ev))
		wrong = SL_VHOST_MSG_FDS;
	return wrong;
}

static int call_set(struct sl_vhost *d, struct sl_vu_msg *m, uint32_t index)
{
	struct sl_vhost_ring *r = &d->ring[index];
	int wrong = fd_take(d, m, &r->call_fd);

	if (wrong != OK)
		return wrong;
	r->vq.call_fd = r->call_fd;
	if (r->vq.state == SL_VQ_STARTED)
		ring_call(d, r);
	return OK;
}

/* Messages about one ring whose number is in range. */
static int ring_message(struct sl_vhost *d, struct sl_vu_msg *m, uint32_t index, struct sl_vu_msg *answer)
{
	struct sl_vhost_ring *r = &d->ring[index];
	uint32_t num = m->body.state.num;

	switch (m->hdr.request) {
	case SL_VU_SET_VRING_KICK:
		return kick_set(d, m, index);
	case SL_VU_SET_VRING_CALL:
		return call_set(d, m, index);
	case SL_VU_SET_VRING_ERR:
		return fd_take(d, m, &r->err_fd);
	case SL_VU_SET_VRING_ENABLE:
		r->enabled = num;
		return OK;
	case SL_VU_GET_VRING_BASE:
		ring_stop(d, r);
		answer->body.state = (struct sl_vu_state){ index, r->base };
		answer->hdr.size = sizeof(answer->body.state);
		return OK;
	default:
		break;
	}
	if (r->vq.state != SL_VQ_STOPPED)
		return SL_VHOST_MSG_STATE;
	if (m->hdr.request == SL_VU_SET_VRING_ADDR) {
		r->addr = m->body.addr;
		r->has_addr = true;
	} else if (m->hdr.request == SL_VU_SET_VRING_BASE) {
		r->base = num;
	} else {
		if (!num || num > SL_VQ_SIZE_MAX)
			return SL_VHOST_MSG_VALUE;
		r->size = (uint16_t)num;
	}
	return OK;
}

static int answer_u64(struct sl_vu_msg *answer, uint64_t v)
{
	answer->body.u64 = v;
	answer->hdr.size = sizeof(v);
	return OK;
}

static int message_run(struct sl_vhost *d, struct sl_vu_msg *m, struct sl_vu_msg *answer)
{
	uint32_t i, index;

	switch (m->hdr.request) {
	case SL_VU_GET_FEATURES:
		return answer_u64(answer, sl_vhost_features());
	case SL_VU_GET_PROTOCOL_FEATURES:
		return answer_u64(answer, sl_vhost_protocol_features());
	case SL_VU_GET_QUEUE_NUM:
		return answer_u64(answer, d->conf.nb_pair);
	case SL_VU_GET_MAX_MEM_SLOTS:
		return answer_u64(answer, SL_VHOST_REGIONS);
	case SL_VU_SET_PROTOCOL_FEATURES:
		if (m->body.u64 & ~sl_vhost_protocol_features())
			return SL_VHOST_MSG_VALUE;
		d->protocol = m->body.u64;
		return OK;
	case SL_VU_SET_FEATURES:
		return features_set(d, m->body.u64);
	case SL_VU_SET_OWNER:     /* whoever is connected owns the device: not all front-ends say it again */
		return OK;
	case SL_VU_RESET_OWNER:   /* deprecated; what the specification leaves of it: all rings end */
		for (i = 0; i < nb_ring(d); i++)
			ring_reset(d, &d->ring[i]);
		return OK;
	case SL_VU_SET_MEM_TABLE:
		return table_set(d, m);
	case SL_VU_ADD_MEM_REG:
		return sl_vhost_memory_add(&d->mem, &m->body.one.region, m->fds[0], d->conf.unsealed_ok) ?
		       (int)SL_VHOST_MSG_MEMORY : OK;
	case SL_VU_REM_MEM_REG:
		return region_remove(d, &m->body.one.region);
	case SL_VU_NET_SET_MTU:
		d->mtu = (uint16_t)m->body.u64;
		return OK;
	case SL_VU_SEND_RARP:     /* after a migration; a router learns nothing from it */
		return OK;
	case SL_VU_SET_VRING_KICK:
	case SL_VU_SET_VRING_CALL:
	case SL_VU_SET_VRING_ERR:
		index = (uint32_t)m->body.u64 & SL_VU_INDEX_MASK;
		break;
	default:
		index = m->body.state.index;   /* also where struct sl_vu_addr has it */
	}
	return index < nb_ring(d) ? ring_message(d, m, index, answer) : (int)SL_VHOST_MSG_VALUE;
}

static void pairs_note(struct sl_vhost *d)
{
	uint8_t i;

	d->nb_up = 0;
	for (i = 0; i < d->conf.nb_pair; i++)
		if (sl_vhost_ring_is_up(d, 2u * i))
			d->up[d->nb_up++] = i;
}

int sl_vhost_message(struct sl_vhost *d, struct sl_vu_msg *m, struct sl_vu_msg *answer)
{
	bool ack = m->hdr.flags & SL_VU_NEED_REPLY && d->protocol & BIT(SL_VU_F_REPLY_ACK);
	int wrong = sl_vu_msg_check(m, d->protocol);
	uint32_t i;

	d->count[SL_VHOST_MESSAGES]++;
	memset(answer, 0, sizeof(*answer));
	if (wrong == OK)
		wrong = message_run(d, m, answer);
	pairs_note(d);
	for (i = 0; i < m->nb_fd; i++)
		if (m->fds[i] >= 0)
			sl_vhost_fd_close(m->fds[i]);
	m->nb_fd = 0;
	if (ack && !sl_vu_has_answer(m->hdr.request))
		answer_u64(answer, wrong != OK);
	if (answer->hdr.size) {
		answer->hdr.request = m->hdr.request;
		answer->hdr.flags = SL_VU_VERSION | SL_VU_REPLY;
	}
	if (wrong != OK) {
		d->count[wrong]++;
		return -EPROTO;
	}
	return answer->hdr.size > 0;
}

void sl_vhost_kicked(struct sl_vhost *d, uint32_t i)
{
	uint64_t n;
	struct iovec iov = { &n, sizeof(n) };

	/* not by read(): whoever shares the descriptor can make that wait */
	if (i < nb_ring(d) && d->ring[i].kick_fd >= 0 && preadv2(d->ring[i].kick_fd, &iov, 1, -1, RWF_NOWAIT) > 0) {
		d->count[SL_VHOST_KICKS]++;
		d->kicked += sl_min(n, UINT64_MAX / 2);
	}
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

void sl_vhost_init(struct sl_vhost *d, const struct sl_vhost_conf *conf)
{
	uint32_t i;

	memset(d, 0, sizeof(*d));
	d->conf = *conf;
	for (i = 0; i < SL_VHOST_RINGS_MAX; i++)
		d->ring[i].kick_fd = d->ring[i].call_fd = d->ring[i].err_fd = -1;
}

void sl_vhost_reset(struct sl_vhost *d)
{
	uint32_t i;

	for (i = 0; i < SL_VHOST_RINGS_MAX; i++)
		ring_reset(d, &d->ring[i]);
	sl_vhost_memory_clear(&d->mem);
	d->nb_up = 0;
	d->features = d->protocol = 0;
	d->mtu = 0;
}
