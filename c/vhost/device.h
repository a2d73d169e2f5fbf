/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio-net device of one guest as a vhost-user back-end sees it: features, memory, rings, and the messages that set
 * them. Transport is the link's (link.h), frames are the queues' (queue.h).
 *
 *   state of a ring          messages about it that are legal
 *   stopped                   NUM, ADDR, BASE, KICK (starts it), CALL, ERR, ENABLE, GET_VRING_BASE
 *   started or broken         KICK, CALL, ERR, ENABLE, GET_VRING_BASE (stops it). Memory may change under it as long as
 *                             the ring itself stays inside
 *   never: NUM, ADDR, BASE or other features while a ring runs; KICK before size, addresses, memory and VERSION_1
 *
 * The owner is whoever is connected: DPDK's front-end does not repeat SET_OWNER after it has lost its back-end. */
#ifndef SL_VHOST_DEVICE_H
#define SL_VHOST_DEVICE_H

#include "vhost/memory.h"
#include "vhost/message.h"
#include "vhost/offer.h"
#include "vhost/queue.h"

enum { SL_VHOST_RINGS_MAX = 2 * SL_VHOST_PAIRS_MAX };

struct sl_vhost_conf {
	uint16_t nb_pair;                 /* 1 ... SL_VHOST_PAIRS_MAX: queue pairs that are offered */
	bool unsealed_ok;                 /* map memory files that can be cut short: only for trusted peers (tests) */
	uint32_t frame_max;               /* bytes of a frame from the guest */
	struct sl_bell *bell;             /* the caller's, open */
	int epoll_fd;                     /* kicks of the guest's transmit rings are watched here; -1: not */
	uint64_t kick_event;              /* epoll data of ring i's kick: kick_event + i */
};

struct sl_vhost_ring {
	struct sl_vq vq;
	struct sl_vu_addr addr;
	uint16_t size;
	uint32_t base;
	int kick_fd, call_fd, err_fd;     /* -1: none */
	bool has_addr, enabled;
};

struct sl_vhost {
	struct sl_vhost_conf conf;
	uint64_t features, protocol;      /* negotiated */
	uint16_t mtu;                     /* of NET_SET_MTU; 0: not set */
	uint64_t kicked;                  /* kicks by the guest, each counted, as it says; may wrap */
	uint8_t nb_up, up[SL_VHOST_PAIRS_MAX];   /* pairs whose ring to the guest ran after the last message */
	struct sl_vhost_memory mem;
	uint64_t count[SL_VHOST_COUNT_NB];
	struct sl_vhost_ring ring[SL_VHOST_RINGS_MAX];   /* even: to the guest, odd: from it */
};

void sl_vhost_init(struct sl_vhost *d, const struct sl_vhost_conf *conf);
/* Stops all rings, closes and unmaps everything of the peer's; counters stay. */
void sl_vhost_reset(struct sl_vhost *d);

/* Carries out one complete message; takes or closes all its descriptors. 1: *answer is to be sent; 0: no answer;
 * -EPROTO: a violation (counted), end the link; *answer is to be sent before if its hdr.request is not 0. */
int sl_vhost_message(struct sl_vhost *d, struct sl_vu_msg *m, struct sl_vu_msg *answer);

/* A kick of ring i: clears it. */
void sl_vhost_kicked(struct sl_vhost *d, uint32_t i);

/* Ring i runs and is enabled. */
static inline bool sl_vhost_ring_is_up(const struct sl_vhost *d, uint32_t i)
{
	return d->ring[i].vq.state == SL_VQ_STARTED && d->ring[i].enabled;
}

/* Copies frames from the guest, all rings in turn, from ring pair *turn on. *more: buffers may be left. */
uint32_t sl_vhost_recv(struct sl_vhost *d, struct sl_vq_buf *bufs, uint32_t nb, uint32_t *turn, bool *more);

/* Copies a frame to the guest; hash spreads frames over its running pairs; flush with sl_vhost_flush. -ENETDOWN: no ring is up; or as
 * sl_vq_send. */
int sl_vhost_send(struct sl_vhost *d, uint32_t hash, const struct iovec *seg, uint32_t nb_seg, uint32_t len);
void sl_vhost_flush(struct sl_vhost *d);

/* Asks for kicks of all rings from the guest; true: do not sleep, something is there. */
bool sl_vhost_arm(struct sl_vhost *d);
void sl_vhost_disarm(struct sl_vhost *d);

#endif
