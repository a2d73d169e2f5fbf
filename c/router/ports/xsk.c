/* SPDX-License-Identifier: Apache-2.0 */
/* AF_XDP in copy mode. One UMEM per socket, cut in two once and for all: the first RX_CHUNKS chunks go round between
 * fill and receive ring, the others between tx_free and completion ring. Frames longer than a chunk are chains of
 * descriptors (multi-buffer). */
#include <bpf/bpf.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <xdp/xsk.h>

#include "router/ports/port.h"

/* uapi of Linux 6.6, younger than the headers we build with */
#define SL_XDP_USE_SG (1 << 4)
#define SL_XDP_PKT_CONTD (1 << 0)

enum {
	RX_CHUNKS = 2048,        /* also the size of the fill and receive rings */
	TX_CHUNKS = 1024,        /* also the size of the transmit and completion rings */
	RX_DESCS = 64,           /* looked at in one burst */
	HUGE_PAGE = 2 << 20,
	BIND_TRIES = 100,
	BIND_WAIT_NS = 10000000,
};

struct sl_xsk {
	struct sl_port port;
	struct xsk_socket *sock;
	struct xsk_umem *umem;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons comp, rx;
	uint8_t *mem;
	size_t mem_len;
	uint32_t chunk_len;              /* a power of two */
	uint32_t nb_held, nb_free;
	uint64_t held[RX_DESCS];         /* chunks of the last burst; back to the fill ring at the next */
	uint64_t tx_free[TX_CHUNKS];
};

static struct sl_xsk *xsk_of(struct sl_port *port)
{
	return sl_container_of(port, struct sl_xsk, port);
}

static uint64_t chunk_of(const struct sl_xsk *x, uint64_t offset)
{
	return offset & ~(uint64_t)(x->chunk_len - 1);
}

/* ---- receive ----------------------------------------------------------------------------------------------------- */

static void held_release(struct sl_xsk *x)
{
	uint32_t i, idx;

	/* never fails: the ring has room for every receive chunk there is */
	if (!x->nb_held || xsk_ring_prod__reserve(&x->fill, x->nb_held, &idx) != x->nb_held)
		return;
	for (i = 0; i < x->nb_held; i++)
		*xsk_ring_prod__fill_addr(&x->fill, idx + i) = x->held[i];
	xsk_ring_prod__submit(&x->fill, x->nb_held);
	x->nb_held = 0;
}

/* Takes the verdict and removes it: the chunk's next frame may come without one. */
static void meta_take(uint8_t *data, size_t headroom, struct sl_meta *ret)
{
	*ret = (struct sl_meta){ 0 };
	if (headroom < sizeof(*ret))
		return;
	memcpy(ret, data - sizeof(*ret), sizeof(*ret));
	memset(data - sizeof(*ret), 0, sizeof(ret->magic));
	if (ret->magic != SL_META_MAGIC)
		*ret = (struct sl_meta){ 0 };
}

/* Appends a descriptor to frame; false: it does not fit any more (the frame is then dropped at its end). */
static bool seg_append(struct sl_xsk *x, struct sl_frame *frame, const struct xdp_desc *d)
{
	uint8_t *data = x->mem + d->addr;

	if (!frame->nb_seg)
		meta_take(data, d->addr - chunk_of(x, d->addr), &frame->meta);
	if (frame->nb_seg == SL_FRAME_SEGS || frame->len + d->len > SL_FRAME_MAX)
		return false;
	frame->seg[frame->nb_seg++] = (struct iovec){ data, d->len };
	frame->len += d->len;
	return true;
}

static uint32_t xsk_rx_burst(struct sl_port *port, struct sl_frame *frames, uint32_t nb)
{
	struct sl_xsk *x = xsk_of(port);
	uint32_t idx, i, seen, done = 0, out = 0;
	bool fits = true;

	held_release(x);
	nb = sl_min(nb, (uint32_t)SL_BURST);
	seen = xsk_ring_cons__peek(&x->rx, RX_DESCS, &idx);
	for (i = 0; i < seen && out < nb; i++) {
		const struct xdp_desc *d = xsk_ring_cons__rx_desc(&x->rx, idx + i);

		if (i == done) {
			frames[out].nb_seg = frames[out].len = 0;
			fits = true;
		}
		fits = seg_append(x, &frames[out], d) && fits;
		x->held[i] = chunk_of(x, d->addr);
		if (d->options & SL_XDP_PKT_CONTD)
			continue;
		done = i + 1;
		if (fits)
			out++;
		else
			port->oversize++;
	}
	/* what follows the last whole frame is looked at again */
	xsk_ring_cons__cancel(&x->rx, seen - done);
	xsk_ring_cons__release(&x->rx, done);
	x->nb_held = done;
	return out;
}

/* ---- transmit ---------------------------------------------------------------------------------------------------- */

static void completions_take(struct sl_xsk *x)
{
	uint32_t idx, i, n = xsk_ring_cons__peek(&x->comp, TX_CHUNKS, &idx);

	for (i = 0; i < n; i++)
		x->tx_free[x->nb_free++] = chunk_of(x, *xsk_ring_cons__comp_addr(&x->comp, idx + i));
	xsk_ring_cons__release(&x->comp, n);
}

/* The kernel sends 32 frames per call and says EAGAIN while there are more; ENOBUFS and EBUSY: the device is full,
 * later. */
static void tx_push(struct sl_xsk *x)
{
	uint32_t tries;

	x->port.unsent = false;
	for (tries = 0; tries < TX_CHUNKS / SL_BURST; tries++) {
		if (!xsk_ring_prod__needs_wakeup(&x->tx))
			return;
		if (sendto(x->port.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
			return;
		if (errno != EAGAIN)
			break;
	}
	x->port.unsent = errno == EAGAIN || errno == EBUSY || errno == ENOBUFS;
	if (errno == ENXIO)   /* the kernel has unbound the socket */
		x->port.error = -ENXIO;
}

/* Copies a frame into chunks and queues their descriptors. */
static int frame_queue(struct sl_xsk *x, const struct sl_frame *f)
{
	uint32_t need = (f->len + x->chunk_len - 1) / x->chunk_len, left = f->len, s = 0, idx, i;
	size_t from = 0;

	if (!f->len || f->len > SL_FRAME_MAX)
		return -EMSGSIZE;
	if (x->nb_free < need || xsk_ring_prod__reserve(&x->tx, need, &idx) != need)
		return -EAGAIN;
	for (i = 0; i < need; i++) {
		struct xdp_desc *d = xsk_ring_prod__tx_desc(&x->tx, idx + i);
		uint32_t len = sl_min(left, x->chunk_len), at = 0;

		*d = (struct xdp_desc){ .addr = x->tx_free[--x->nb_free], .len = len };
		while (at < len) {
			size_t part = sl_min((size_t)(len - at), f->seg[s].iov_len - from);

			memcpy(x->mem + d->addr + at, (const uint8_t *)f->seg[s].iov_base + from, part);
			at += (uint32_t)part;
			from += part;
			if (from == f->seg[s].iov_len) {
				s++;
				from = 0;
			}
		}
		left -= len;
		d->options = left ? SL_XDP_PKT_CONTD : 0;
	}
	xsk_ring_prod__submit(&x->tx, need);
	return 0;
}

static uint32_t xsk_tx_burst(struct sl_port *port, const struct sl_frame *frames, uint32_t nb)
{
	struct sl_xsk *x = xsk_of(port);
	uint32_t i;

	completions_take(x);
	port->error = 0;
	for (i = 0; i < nb; i++) {
		port->error = frame_queue(x, &frames[i]);
		if (port->error)
			break;
	}
	if (i || port->unsent)
		tx_push(x);
	return i;
}

static void xsk_stats(struct sl_port *port, struct sl_nic_stats *ret)
{
	struct xdp_statistics st = { 0 };
	socklen_t len = sizeof(st);

	getsockopt(port->fd, SOL_XDP, XDP_STATISTICS, &st, &len);
	*ret = (struct sl_nic_stats){ st.rx_dropped, st.rx_ring_full, st.rx_fill_ring_empty_descs };
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

static void xsk_close(struct sl_port *port)
{
	struct sl_xsk *x = xsk_of(port);

	if (x->sock)
		xsk_socket__delete(x->sock);
	if (x->umem)
		xsk_umem__delete(x->umem);
	if (x->mem)
		munmap(x->mem, x->mem_len);
	free(x);
}

static int umem_open(struct sl_xsk *x)
{
	struct xsk_umem_config conf = { .fill_size = RX_CHUNKS, .comp_size = TX_CHUNKS, .frame_size = x->chunk_len };
	size_t len = (size_t)(RX_CHUNKS + TX_CHUNKS) * x->chunk_len;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
	void *mem;

	x->mem_len = (len + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
	mem = mmap(NULL, x->mem_len, PROT_READ | PROT_WRITE, flags | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED)
		mem = mmap(NULL, x->mem_len, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (mem == MAP_FAILED)
		return -errno;
	x->mem = mem;
	return xsk_umem__create(&x->umem, mem, len, &x->fill, &x->comp, &conf);
}

static int socket_open(struct sl_xsk *x, const struct sl_xsk_conf *conf)
{
	bool multi = conf->mtu > SL_XSK_SINGLE_MTU;
	struct xsk_socket_config sc = {
		.rx_size = RX_CHUNKS, .tx_size = TX_CHUNKS, .libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = (uint16_t)(XDP_COPY | XDP_USE_NEED_WAKEUP | (multi ? SL_XDP_USE_SG : 0)),
	};
	struct timespec wait = { .tv_nsec = BIND_WAIT_NS };
	int err, tries;

	/* EBUSY: the memory of a former owner of this queue is freed some time after its exit */
	for (tries = 0; tries < BIND_TRIES; tries++) {
		err = xsk_socket__create(&x->sock, conf->ifname, conf->queue, x->umem, &x->rx, &x->tx, &sc);
		if (err != -EBUSY)
			break;
		nanosleep(&wait, NULL);
	}
	if (err == -EINVAL && multi)   /* the same without the flag tells a missing feature from a missing queue */
		err = -EOPNOTSUPP;
	return err;
}

/* All receive chunks into the fill ring, all others ready to send; then the classifier may find the socket. */
static int queue_start(struct sl_xsk *x, const struct sl_xsk_conf *conf)
{
	uint32_t idx, i;

	if (xsk_ring_prod__reserve(&x->fill, RX_CHUNKS, &idx) != RX_CHUNKS)
		return -ENOSPC;
	for (i = 0; i < RX_CHUNKS; i++)
		*xsk_ring_prod__fill_addr(&x->fill, idx + i) = (uint64_t)i * x->chunk_len;
	xsk_ring_prod__submit(&x->fill, RX_CHUNKS);
	for (i = 0; i < TX_CHUNKS; i++)
		x->tx_free[i] = (uint64_t)(RX_CHUNKS + i) * x->chunk_len;
	x->nb_free = TX_CHUNKS;
	x->port.fd = xsk_socket__fd(x->sock);
	return bpf_map_update_elem(conf->xskmap_fd, &conf->queue, &x->port.fd, 0) ? -errno : 0;
}

int sl_port_xsk_open(const struct sl_xsk_conf *conf, struct sl_port **ret)
{
	static const struct sl_port_ops ops = { xsk_rx_burst, xsk_tx_burst, xsk_close, xsk_stats };
	struct sl_xsk *x;
	int err;

	if (conf->mtu > SL_RTR_MTU_MAX)
		return -EMSGSIZE;
	if (!if_nametoindex(conf->ifname))
		return -ENODEV;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->port = (struct sl_port){ .ops = &ops, .fd = -1 };
	/* 256 bytes of each chunk are the kernel's headroom, in which the verdict rides */
	x->chunk_len = conf->mtu + SL_ETH_LEN + SL_VLAN_MAX + 256 <= 2048 ? 2048 : 4096;
	err = umem_open(x);
	if (!err)
		err = socket_open(x, conf);
	if (!err)
		err = queue_start(x, conf);
	if (err) {
		xsk_close(&x->port);
		return err;
	}
	*ret = &x->port;
	return 0;
}
