/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: a hostile front-end and guest. The input is a script: messages of any shape with any descriptors,
 * writes into guest memory, and turns of the device. Half of the scripts begin with a device whose rings run, so that
 * rings are reached at all.
 *
 * Built from this file and all of c/vhost, with -fsanitize=fuzzer,address,undefined. */
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vhost/device.h"

enum {
	MEM_LEN = 1 << 16,
	RING_LEN = 1 << 12,               /* descriptors, then driver's and device's area */
	SIZE = 8,
	FRAME_MAX = 2048,
	STEPS_MAX = 256,
};

#define GPA 0x10000ull
#define UVA 0x7f0000000000ull

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct script {
	const uint8_t *at, *end;
};

static struct sl_vhost dev;
static uint8_t *mem;
static unsigned long long nb_message, nb_descriptor;   /* made up by the input, told at the end */
static int pool[4];                       /* what a peer may send: memory, eventfd, unsealed memory, pipe */

static uint64_t take(struct script *s, uint32_t nb)
{
	uint64_t v = 0;

	while (nb-- && s->at < s->end)
		v = v << 8 | *s->at++;
	return v;
}

static void totals_print(void)
{
	fprintf(stderr, "totals: %llu messages, %llu descriptors\n", nb_message, nb_descriptor);
}

static void world_open(void)
{
	static struct sl_bell bell;
	struct sl_vhost_conf conf = { .nb_pair = 1, .frame_max = FRAME_MAX, .epoll_fd = -1, .bell = &bell };
	int pipes[2];

	pool[0] = memfd_create("guest", MFD_ALLOW_SEALING);
	pool[1] = eventfd(0, EFD_NONBLOCK);
	pool[2] = memfd_create("unsealed", 0);
	if (pool[0] < 0 || pool[1] < 0 || pool[2] < 0 || pipe(pipes) || ftruncate(pool[0], MEM_LEN) ||
	    ftruncate(pool[2], MEM_LEN) || fcntl(pool[0], F_ADD_SEALS, F_SEAL_SHRINK))
		abort();
	pool[3] = pipes[0];
	mem = mmap(NULL, MEM_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, pool[0], 0);
	if (mem == MAP_FAILED)
		abort();
	if (sl_bell_open(&bell) || sl_guard_install() || atexit(totals_print))
		abort();
	sl_vhost_init(&dev, &conf);
}

static void say(uint32_t request, uint32_t flags, const void *body, uint32_t len, const uint8_t *fds, uint32_t nb_fd)
{
	struct sl_vu_msg m = { .hdr = { request, flags, len }, .nb_fd = nb_fd }, answer;
	uint32_t i;

	memcpy(&m.body, body, sl_min((size_t)len, sizeof(m.body)));
	for (i = 0; i < nb_fd; i++)
		m.fds[i] = dup(pool[fds[i] & 3]);
	/* as the link does: a violation resets the device */
	if (sl_vhost_message(&dev, &m, &answer) < 0)
		sl_vhost_reset(&dev);
}

static void say_state(uint32_t request, uint32_t index, uint32_t num)
{
	struct sl_vu_state s = { index, num };

	say(request, SL_VU_VERSION, &s, sizeof(s), NULL, 0);
}

static void rings_start(uint64_t features)
{
	static const uint8_t memory, event = 1;
	struct sl_vu_table t = { .nb = 1, .region = {{ GPA, MEM_LEN, UVA, 0 }} };
	uint32_t i;

	say(SL_VU_SET_FEATURES, SL_VU_VERSION, &features, 8, NULL, 0);
	say(SL_VU_SET_MEM_TABLE, SL_VU_VERSION, &t, 8 + 32, &memory, 1);
	for (i = 0; i < 2; i++) {
		struct sl_vu_addr a = { i, 0, UVA + i * RING_LEN, UVA + i * RING_LEN + 3072, UVA + i * RING_LEN + 2048, 0 };
		uint64_t ring = i;

		say_state(SL_VU_SET_VRING_NUM, i, SIZE);
		say_state(SL_VU_SET_VRING_BASE, i, features & 1ull << VIRTIO_F_RING_PACKED ? 0x8000 : 0);
		say(SL_VU_SET_VRING_ADDR, SL_VU_VERSION, &a, sizeof(a), NULL, 0);
		say(SL_VU_SET_VRING_CALL, SL_VU_VERSION, &ring, 8, &event, 1);
		say(SL_VU_SET_VRING_KICK, SL_VU_VERSION, &ring, 8, &event, 1);
		say_state(SL_VU_SET_VRING_ENABLE, i, 1);
	}
}

static void any_message(struct script *s)
{
	union sl_vu_payload body;
	uint32_t request = (uint32_t)take(s, 1) % 48, len = (uint32_t)take(s, 2) % 300, nb_fd, i;
	uint32_t flags = take(s, 1) & 7 ? SL_VU_VERSION | SL_VU_NEED_REPLY : (uint32_t)take(s, 4);
	uint8_t fds[SL_VU_FDS_MAX];

	nb_message++;
	nb_fd = (uint32_t)take(s, 1) % (SL_VU_FDS_MAX + 1);
	for (i = 0; i < nb_fd; i++)
		fds[i] = (uint8_t)take(s, 1);
	for (i = 0; i < sizeof(body); i++)
		((uint8_t *)&body)[i] = i < len ? (uint8_t)take(s, 1) : 0;
	say(request, flags, &body, len, fds, nb_fd);
}

/* A descriptor that is nearly good, in one of the rings, and an index that shows it. */
static void any_descriptor(struct script *s)
{
	uint32_t i = take(s, 1) & 1, slot = (uint32_t)take(s, 1) % SIZE;
	uint8_t *ring = mem + i * RING_LEN, flags = (uint8_t)take(s, 1);
	struct vring_desc d = {
		flags & 0x80 ? take(s, 8) : GPA + take(s, 2), flags & 0x40 ? (uint32_t)take(s, 4) : (uint32_t)take(s, 2),
		(uint16_t)((i ? 0 : VRING_DESC_F_WRITE) ^ (flags & 7)), (uint16_t)take(s, flags & 0x20 ? 2 : 1),
	};

	nb_descriptor++;
	if (dev.features & 1ull << VIRTIO_F_RING_PACKED) {
		uint16_t f = d.flags | (flags & 8 ? 1 << VRING_PACKED_DESC_F_USED : 1 << VRING_PACKED_DESC_F_AVAIL);

		d.flags = d.next;
		d.next = f;
	}
	memcpy(ring + slot * sizeof(d), &d, sizeof(d));
	((uint16_t *)(void *)(ring + 3072))[1] = (uint16_t)(((uint16_t *)(void *)(ring + 3072))[1] + (flags >> 4 & 1));
}

static void any_turn(struct script *s)
{
	static uint8_t room[SIZE][FRAME_MAX];
	static const uint8_t frame[4096];
	struct sl_vq_buf bufs[SIZE];
	uint32_t i, turn = 0, what = (uint32_t)take(s, 1), len = 14 + (uint32_t)take(s, 2) % 4000;
	struct iovec seg = { (void *)(uintptr_t)frame, len };
	bool more;

	for (i = 0; i < SIZE; i++)
		bufs[i].data = room[i];
	if (what & 1)
		sl_vhost_recv(&dev, bufs, SIZE, &turn, &more);
	if (what & 2)
		sl_vhost_send(&dev, what, &seg, 1, len);
	if (what & 4)
		sl_vhost_flush(&dev);
	if (what & 8)
		sl_vhost_arm(&dev);
	if (what & 16)
		sl_vhost_disarm(&dev);
	if (what & 32)
		sl_vq_pass(&dev.ring[1].vq, &dev.ring[0].vq, SIZE, &more);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct script s = { data, data + len };
	uint32_t steps, at;

	if (!mem)
		world_open();
	memset(mem, 0, MEM_LEN);
	at = (uint32_t)take(&s, 1);
	if (at & 1)
		rings_start(1ull << VIRTIO_F_VERSION_1 | (at & 2 ? 1ull << VIRTIO_F_RING_PACKED : 0) |
			    (at & 4 ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0) | (at & 8 ? 1ull << VIRTIO_NET_F_MRG_RXBUF : 0));
	for (steps = 0; s.at < s.end && steps < STEPS_MAX; steps++)
		switch (take(&s, 1) & 7) {
		case 0:
			any_message(&s);
			break;
		case 1:
			at = (uint32_t)take(&s, 2) % (2 * RING_LEN);
			mem[at] = (uint8_t)take(&s, 1);
			break;
		case 2: case 3: case 4:
			any_descriptor(&s);
			break;
		default:
			any_turn(&s);
		}
	sl_vhost_reset(&dev);
	return 0;
}
