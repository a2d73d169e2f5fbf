/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "test_vhost_rig.h"

enum { DRIVER_OFF = GUEST_RING_LEN / 2, DEVICE_OFF = GUEST_RING_LEN * 3 / 4 };

static void *at(struct guest *g, uint32_t index, uint64_t off)
{
	return g->mem + g->ring[index].off + off;
}

struct vring_desc *desc_of(struct guest *g, uint32_t index) { return at(g, index, 0); }
struct vring_avail *avail_of(struct guest *g, uint32_t index) { return at(g, index, DRIVER_OFF); }
struct vring_used *used_of(struct guest *g, uint32_t index) { return at(g, index, DEVICE_OFF); }
struct vring_packed_desc *slots_of(struct guest *g, uint32_t index) { return at(g, index, 0); }
struct vring_packed_desc_event *driver_event_of(struct guest *g, uint32_t index) { return at(g, index, DRIVER_OFF); }
struct vring_packed_desc_event *device_event_of(struct guest *g, uint32_t index) { return at(g, index, DEVICE_OFF); }

void guest_open(struct guest *g, uint16_t nb_pair)
{
	struct sl_vhost_conf conf = { .nb_pair = nb_pair, .frame_max = GUEST_FRAME_MAX, .epoll_fd = -1, .bell = &g->bell };
	uint32_t i;

	memset(g, 0, sizeof(*g));
	assert_int_equal(sl_bell_open(&g->bell), 0);
	g->fd = memfd_create("guest", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	assert_true(g->fd >= 0);
	assert_int_equal(ftruncate(g->fd, GUEST_LEN), 0);
	assert_int_equal(fcntl(g->fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	g->mem = mmap(NULL, GUEST_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	assert_ptr_not_equal(g->mem, MAP_FAILED);
	for (i = 0; i < SL_VHOST_RINGS_MAX; i++)
		g->ring[i] = (struct guest_ring){ .off = (uint64_t)i * GUEST_RING_LEN, .kick = -1, .call = -1 };
	sl_vhost_init(&g->dev, &conf);
}

void guest_close(struct guest *g)
{
	uint32_t i;

	sl_vhost_reset(&g->dev);
	for (i = 0; i < SL_VHOST_RINGS_MAX; i++) {
		if (g->ring[i].kick >= 0)
			close(g->ring[i].kick);
		if (g->ring[i].call >= 0)
			close(g->ring[i].call);
	}
	munmap(g->mem, GUEST_LEN);
	close(g->fd);
	sl_bell_close(&g->bell);
}

int say(struct guest *g, uint32_t request, const void *body, uint32_t len, const int *fds, uint32_t nb_fd,
	struct sl_vu_msg *answer)
{
	struct sl_vu_msg m = { .hdr = { request, SL_VU_VERSION, len }, .nb_fd = nb_fd }, ignored;
	uint32_t i;

	memcpy(&m.body, body, sl_min((size_t)len, sizeof(m.body)));
	for (i = 0; i < nb_fd; i++)
		m.fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
	return sl_vhost_message(&g->dev, &m, answer ? answer : &ignored);
}

int say_u64(struct guest *g, uint32_t request, uint64_t v)
{
	return say(g, request, &v, sizeof(v), NULL, 0, NULL);
}

int say_state(struct guest *g, uint32_t request, uint32_t index, uint32_t num)
{
	struct sl_vu_state s = { index, num };

	return say(g, request, &s, sizeof(s), NULL, 0, NULL);
}

void guest_setup(struct guest *g, uint64_t features)
{
	struct sl_vu_table t = { .nb = 1, .region = {{ GUEST_GPA, GUEST_LEN, GUEST_UVA, 0 }} };

	assert_int_equal(say(g, SL_VU_SET_OWNER, &t, 0, NULL, 0, NULL), 0);
	assert_int_equal(say_u64(g, SL_VU_SET_PROTOCOL_FEATURES, sl_vhost_protocol_features()), 0);
	assert_int_equal(say_u64(g, SL_VU_SET_FEATURES, features), 0);
	assert_int_equal(say(g, SL_VU_SET_MEM_TABLE, &t, 8 + 32, &g->fd, 1, NULL), 0);
}

static void eventfd_say(struct guest *g, uint32_t request, uint32_t index, int *fd)
{
	uint64_t v = index;

	if (*fd < 0)
		*fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_int_equal(say(g, request, &v, sizeof(v), fd, 1, NULL), 0);
}

void guest_ring_start(struct guest *g, uint32_t index, uint16_t size, bool packed, uint16_t base)
{
	struct guest_ring *r = &g->ring[index];
	struct sl_vu_addr a = {
		.index = index, .desc_uva = GUEST_UVA + r->off, .driver_uva = GUEST_UVA + r->off + DRIVER_OFF,
		.device_uva = GUEST_UVA + r->off + DEVICE_OFF,
	};
	uint32_t i;

	r->size = size;
	r->packed = packed;
	r->next = r->used = base;
	r->desc = 0;
	if (packed) {
		r->next = r->used = base & 0x7fff;
		r->wrap = r->used_wrap = base >> 15;
	}
	/* all slots as the laps before left them: used */
	for (i = 0; packed && r->kick < 0 && i < size; i++)
		slots_of(g, index)[i].flags = r->wrap == (i < r->next) ? 1 << VRING_PACKED_DESC_F_AVAIL |
					      1 << VRING_PACKED_DESC_F_USED : 0;
	assert_int_equal(say_state(g, SL_VU_SET_VRING_NUM, index, size), 0);
	assert_int_equal(say_state(g, SL_VU_SET_VRING_BASE, index, base), 0);
	assert_int_equal(say(g, SL_VU_SET_VRING_ADDR, &a, sizeof(a), NULL, 0, NULL), 0);
	eventfd_say(g, SL_VU_SET_VRING_CALL, index, &r->call);
	eventfd_say(g, SL_VU_SET_VRING_KICK, index, &r->kick);
	assert_int_equal(say_state(g, SL_VU_SET_VRING_ENABLE, index, 1), 0);
}

void guest_start(struct guest *g, uint64_t features, uint16_t size, uint16_t base)
{
	uint32_t i;

	guest_open(g, 1);
	guest_setup(g, features);
	for (i = 0; i < 2; i++) {
		avail_of(g, i)->idx = used_of(g, i)->idx = features & F_PACKED ? 0 : base;
		guest_ring_start(g, i, size, features & F_PACKED, base);
	}
}

uint8_t *guest_buf(struct guest *g, uint32_t n)
{
	return g->mem + GUEST_BUFS + (uint64_t)n * GUEST_BUF_LEN;
}

uint64_t buf_gpa(uint32_t n)
{
	return GUEST_GPA + GUEST_BUFS + (uint64_t)n * GUEST_BUF_LEN;
}

static uint16_t post_split(struct guest *g, uint32_t index, const struct part *parts, uint32_t nb)
{
	struct guest_ring *r = &g->ring[index];
	uint16_t head = r->desc, mask = (uint16_t)(r->size - 1);
	uint32_t i;

	for (i = 0; i < nb; i++) {
		uint16_t next = (r->desc + 1) & mask;

		desc_of(g, index)[r->desc] = (struct vring_desc){
			parts[i].gpa, parts[i].len, parts[i].flags | (i + 1 < nb ? VRING_DESC_F_NEXT : 0), next,
		};
		r->desc = next;
	}
	avail_of(g, index)->ring[r->next++ & mask] = head;
	__atomic_store_n(&avail_of(g, index)->idx, r->next, __ATOMIC_RELEASE);
	return head;
}

static uint16_t post_packed(struct guest *g, uint32_t index, const struct part *parts, uint32_t nb)
{
	struct guest_ring *r = &g->ring[index];
	uint16_t id = r->next, first = r->next, first_flags = 0;
	uint32_t i;

	for (i = 0; i < nb; i++) {
		struct vring_packed_desc *d = &slots_of(g, index)[r->next];
		uint16_t flags = parts[i].flags | (i + 1 < nb ? VRING_DESC_F_NEXT : 0) |
				 (r->wrap ? 1 << VRING_PACKED_DESC_F_AVAIL : 1 << VRING_PACKED_DESC_F_USED);

		d->addr = parts[i].gpa;
		d->len = parts[i].len;
		d->id = id;
		if (i)
			d->flags = flags;
		else
			first_flags = flags;
		if (++r->next == r->size) {
			r->next = 0;
			r->wrap = !r->wrap;
		}
	}
	__atomic_store_n(&slots_of(g, index)[first].flags, first_flags, __ATOMIC_RELEASE);
	return id;
}

uint16_t post(struct guest *g, uint32_t index, const struct part *parts, uint32_t nb)
{
	return (g->ring[index].packed ? post_packed : post_split)(g, index, parts, nb);
}

void post_free(struct guest *g, uint32_t index, uint32_t n, uint32_t len)
{
	post(g, index, &(struct part){ buf_gpa(n), len, VRING_DESC_F_WRITE }, 1);
}

void post_frame(struct guest *g, uint32_t index, uint32_t n, uint32_t len, uint8_t fill)
{
	memset(guest_buf(g, n), 0, SL_VQ_HDR_LEN);
	memset(guest_buf(g, n) + SL_VQ_HDR_LEN, fill, len);
	post(g, index, &(struct part){ buf_gpa(n), len + SL_VQ_HDR_LEN, 0 }, 1);
}

bool take_used(struct guest *g, uint32_t index, uint16_t *id, uint32_t *len, uint16_t nb_slot)
{
	struct guest_ring *r = &g->ring[index];

	if (r->packed) {
		struct vring_packed_desc *d = &slots_of(g, index)[r->used];
		uint16_t flags = __atomic_load_n(&d->flags, __ATOMIC_ACQUIRE);
		bool avail = flags >> VRING_PACKED_DESC_F_AVAIL & 1, used = flags >> VRING_PACKED_DESC_F_USED & 1;

		if (avail != used || used != r->used_wrap)
			return false;
		*id = d->id;
		*len = d->len;
		r->used = (uint16_t)(r->used + nb_slot);
		if (r->used >= r->size) {
			r->used = (uint16_t)(r->used - r->size);
			r->used_wrap = !r->used_wrap;
		}
		return true;
	}
	if (__atomic_load_n(&used_of(g, index)->idx, __ATOMIC_ACQUIRE) == r->used)
		return false;
	*id = (uint16_t)used_of(g, index)->ring[r->used & (r->size - 1)].id;
	*len = used_of(g, index)->ring[r->used & (r->size - 1)].len;
	r->used++;
	return true;
}

uint64_t calls(struct guest *g, uint32_t index)
{
	uint64_t n;

	return read(g->ring[index].call, &n, sizeof(n)) > 0 ? n : 0;
}
