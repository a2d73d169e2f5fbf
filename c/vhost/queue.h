/* SPDX-License-Identifier: Apache-2.0 */
/* One virtqueue of a virtio-net device, device side (virtio 1.2 sections 2.7 and 2.8): split or packed. Everything in
 * it that the guest wrote is hostile: each descriptor is copied once and checked, positions are kept here and never
 * read back, a chain has at most SL_VQ_SEGS parts. A guest that breaks the rules breaks its ring: the ring does nothing
 * more until it is stopped and started again, the reason is counted.
 *
 * One thread. No function here blocks or allocates; the only system call is the interrupt in sl_vq_flush.
 *
 *   who          change                when
 *   device       stopped -> started    sl_vq_start: size, addresses, kick known
 *   device       started -> stopped    sl_vq_stop: GET_VRING_BASE, reset, link lost
 *   any call     started -> broken     the guest violated the protocol
 *   device       broken  -> stopped    sl_vq_stop
 *   never: broken -> started */
#ifndef SL_VHOST_QUEUE_H
#define SL_VHOST_QUEUE_H

#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <sys/uio.h>

#include "vhost/bell.h"
#include "vhost/count.h"
#include "vhost/memory.h"

enum {
	SL_VQ_SIZE_MAX = 32768,           /* entries: the specification's limit */
	SL_VQ_SEGS = 32,                  /* descriptors of one frame from the guest */
	SL_VQ_BUFFERS = 32,               /* buffers of the guest's that one frame to it may fill (mergeable) */
	SL_VQ_TO_SEGS = 64,               /* descriptors of those together */
	SL_VQ_HDR_LEN = 12,               /* struct virtio_net_hdr_mrg_rxbuf: virtio 1 has no shorter one */
	SL_VQ_ETH_LEN = 14,               /* no shorter frame */
	SL_VQ_HELD = 64,                  /* packed: buffers that are shown together */
};
_Static_assert(sizeof(struct virtio_net_hdr_mrg_rxbuf) == SL_VQ_HDR_LEN, "wire format");

enum sl_vq_state { SL_VQ_STOPPED, SL_VQ_STARTED, SL_VQ_BROKEN };

/* What sl_vq_start takes: the guest's addresses are host memory already, of the full length that size asks for. */
struct sl_vq_conf {
	void *desc, *driver, *device;     /* split: table, available, used; packed: ring, driver's and device's events */
	uint16_t size;
	bool packed, event_idx, mergeable;
	bool to_guest;                    /* the guest's receive queue */
	struct sl_bell *bell;             /* for interrupts */
	int call_fd;                      /* -1: the guest wants none */
	uint32_t frame_max;               /* bytes of a frame from the guest */
};

/* A buffer that goes back: the upper half of its descriptor, so that it is written by one store. */
struct sl_vq_held {
	uint64_t word;
	uint16_t slot, nb_slot;
	bool wrap;
};

struct sl_vq {
	/* set by sl_vq_start */
	const struct sl_vhost_memory *mem;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct vring_packed_desc *slots;
	struct vring_packed_desc_event *driver_event, *device_event;
	uint64_t *count;                  /* SL_VHOST_COUNT_NB of them */
	struct sl_bell *bell;
	uint32_t frame_max;               /* bytes of a frame from the guest */
	int call_fd;                      /* -1: the guest wants no interrupts */
	uint16_t size;
	bool packed, event_idx, mergeable, to_guest;
	uint8_t state;                    /* enum sl_vq_state */
	/* positions. split: free running; packed: a slot, with its wrap counter */
	uint16_t next;                    /* to be taken */
	uint16_t seen;                    /* split: the available index as last observed */
	uint16_t put;                     /* to be given back */
	uint16_t told;                    /* where put stood when an interrupt was last considered */
	bool next_wrap, put_wrap;
	bool tell_always;                 /* no interrupt was considered since the start */
	bool armed;                       /* the guest was asked for kicks */
	bool owed;                        /* something was given back since the last flush */
	bool small;                       /* a hint: the last frame was. Then its slot is what costs, else its bytes */
	/* packed: what was given back and not shown yet, in order; put is behind it */
	uint32_t nb_held;
	struct sl_vq_held held[SL_VQ_HELD];
};

/* A place to copy a frame to. */
struct sl_vq_buf {
	uint8_t *data;                    /* frame_max bytes */
	uint32_t len;
};

/* q must be stopped (zeroed memory is). -EINVAL: size is zero, too large, or (split) no power of two.
 * Where to go on the ring itself tells. */
int sl_vq_start(struct sl_vq *q, const struct sl_vq_conf *conf, const struct sl_vhost_memory *mem, uint64_t *count);
/* The guest's memory moved: the same ring at other host addresses. */
void sl_vq_move(struct sl_vq *q, const struct sl_vq_conf *conf);
/* Flushes, stops, and returns what GET_VRING_BASE answers. */
uint32_t sl_vq_stop(struct sl_vq *q);

/* Copies up to nb frames from the guest; looks at no more than *budget buffers, and takes them off. Flushes. *more:
 * buffers may be left. */
uint32_t sl_vq_recv(struct sl_vq *q, struct sl_vq_buf *bufs, uint32_t nb, uint32_t *budget, bool *more);

/* Copies one frame to a guest's receive queue, visible with the next flush. -EAGAIN: no free buffer; -EMSGSIZE: the next
 * buffers have no room for it; -EIO: broken. All are counted. */
int sl_vq_send(struct sl_vq *q, const struct iovec *seg, uint32_t nb_seg, uint32_t len);

/* Moves up to nb frames from one guest to another, each byte copied once. Flushes both. Returns how many buffers it
 * took from src; what dst refused is dropped and counted there. */
uint32_t sl_vq_pass(struct sl_vq *src, struct sl_vq *dst, uint32_t nb, bool *more);

/* Shows the guest what was given back, and interrupts it if it wants. */
void sl_vq_flush(struct sl_vq *q);

/* Asks the guest for a kick when it makes the next buffer available. True: one is there already, do not sleep. */
bool sl_vq_arm(struct sl_vq *q);
/* The opposite, a hint: kicks may still come. */
void sl_vq_disarm(struct sl_vq *q);

#endif
