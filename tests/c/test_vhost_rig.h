/* SPDX-License-Identifier: Apache-2.0 */
/* A guest in this process: memory in a sealed memfd, a front-end that sends messages to the device, and a driver for
 * split and packed rings that can be told to lie. */
#ifndef TEST_VHOST_RIG_H
#define TEST_VHOST_RIG_H

#include <linux/virtio_config.h>

#include "vhost/device.h"

enum {
	GUEST_LEN = 8 << 20,
	GUEST_BUF_LEN = 2048,
	GUEST_RING_LEN = 1 << 18,         /* room for each ring; buffers begin behind all of them */
	GUEST_FRAME_MAX = 9238,
};

#define GUEST_GPA 0x40000000ull
#define GUEST_UVA 0x7f0000000000ull
#define GUEST_BUFS ((uint64_t)SL_VHOST_RINGS_MAX * GUEST_RING_LEN)
#define BIT(n) (1ull << (n))
#define F_PLAIN (BIT(VIRTIO_F_VERSION_1) | BIT(30))
#define F_PACKED BIT(VIRTIO_F_RING_PACKED)
#define F_EVENT BIT(VIRTIO_RING_F_EVENT_IDX)
#define F_MRG BIT(VIRTIO_NET_F_MRG_RXBUF)

struct part {
	uint64_t gpa;
	uint32_t len;
	uint16_t flags;                   /* VRING_DESC_F_WRITE, or lies; NEXT is added by the driver */
};

struct guest_ring {
	uint16_t size;
	bool packed;
	uint64_t off;                     /* of the ring in the memory */
	int kick, call;
	uint16_t next, used;              /* split: avail index and used index; packed: slots */
	uint16_t desc;                    /* split: next free descriptor */
	bool wrap, used_wrap;
};

struct guest {
	int fd;
	uint8_t *mem;
	struct sl_vhost dev;
	struct sl_bell bell;
	struct guest_ring ring[SL_VHOST_RINGS_MAX];
};

/* A fresh device; nothing was said to it. */
void guest_open(struct guest *g, uint16_t nb_pair);
void guest_close(struct guest *g);

/* One message; returns sl_vhost_message's result. fds are duplicated first. */
int say(struct guest *g, uint32_t request, const void *body, uint32_t len, const int *fds, uint32_t nb_fd,
	struct sl_vu_msg *answer);
int say_u64(struct guest *g, uint32_t request, uint64_t v);
int say_state(struct guest *g, uint32_t request, uint32_t index, uint32_t num);

/* Owner, features, memory. */
void guest_setup(struct guest *g, uint64_t features);
/* A ring from size to enabled; base as in SET_VRING_BASE. */
void guest_ring_start(struct guest *g, uint32_t index, uint16_t size, bool packed, uint16_t base);
/* guest_open, guest_setup, both rings of each pair. */
void guest_start(struct guest *g, uint64_t features, uint16_t size, uint16_t base);

/* Host address of a buffer, and its gpa. */
uint8_t *guest_buf(struct guest *g, uint32_t n);
uint64_t buf_gpa(uint32_t n);

/* The driver makes a chain available; returns its id. */
uint16_t post(struct guest *g, uint32_t index, const struct part *parts, uint32_t nb);
/* Makes buffer n available to be received into, len bytes. */
void post_free(struct guest *g, uint32_t index, uint32_t n, uint32_t len);
/* Sends a frame of len bytes of value fill (after a zero header) from buffer n. */
void post_frame(struct guest *g, uint32_t index, uint32_t n, uint32_t len, uint8_t fill);
/* Takes back the next used buffer; false: none. */
bool take_used(struct guest *g, uint32_t index, uint16_t *id, uint32_t *len, uint16_t nb_slot);
/* How often the eventfd was written since the last call. */
uint64_t calls(struct guest *g, uint32_t index);

struct vring_desc *desc_of(struct guest *g, uint32_t index);
struct vring_avail *avail_of(struct guest *g, uint32_t index);
struct vring_used *used_of(struct guest *g, uint32_t index);
struct vring_packed_desc *slots_of(struct guest *g, uint32_t index);
struct vring_packed_desc_event *driver_event_of(struct guest *g, uint32_t index);
struct vring_packed_desc_event *device_event_of(struct guest *g, uint32_t index);

#endif
