/* SPDX-License-Identifier: Apache-2.0 */
/* A front-end that says what it likes: sizes, descriptors, order, values, regions. And what is offered. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <dirent.h>

#include <cmocka.h>

#include "test_vhost_rig.h"

enum { TO = 0, FROM = 1 };

static struct guest g;
static const uint8_t zeros[512];

static uint32_t nb_open_fd(void)
{
	DIR *d = opendir("/proc/self/fd");
	uint32_t n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static uint64_t violations(void)
{
	uint64_t n = 0;
	int i;

	for (i = SL_VHOST_RING_SETUP; i <= SL_VHOST_MSG_MEMORY; i++)
		n += g.dev.count[i];
	return n;
}

/* The message ends the link for this reason, and no descriptor of it stays open. */
static void refused(int why, uint32_t request, const void *body, uint32_t len, const int *fds, uint32_t nb_fd)
{
	uint64_t before = g.dev.count[why], all = violations();
	uint32_t open = nb_open_fd();

	assert_int_equal(say(&g, request, body, len, fds, nb_fd, NULL), -EPROTO);
	assert_int_equal(g.dev.count[why], before + 1);
	assert_int_equal(violations(), all + 1);
	assert_int_equal(nb_open_fd(), open);
}

static void refused_u64(int why, uint32_t request, uint64_t v)
{
	refused(why, request, &v, sizeof(v), NULL, 0);
}

static void test_offer(void **state)
{
	static const unsigned int offloads[] = {
		VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
		VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
		VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_RING_F_INDIRECT_DESC, 26 /* log */,
		VIRTIO_F_ACCESS_PLATFORM,
	};
	uint64_t expected = BIT(VIRTIO_F_VERSION_1) | F_PACKED | BIT(VIRTIO_F_IN_ORDER) | F_EVENT | F_MRG |
			    BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_MTU) | BIT(30);
	struct sl_vu_msg a;
	size_t i;

	(void)state;
	guest_open(&g, 2);
	assert_int_equal(say(&g, SL_VU_GET_FEATURES, zeros, 0, NULL, 0, &a), 1);
	assert_true(a.body.u64 == expected);
	assert_int_equal(a.hdr.flags, SL_VU_VERSION | SL_VU_REPLY);
	assert_int_equal(say(&g, SL_VU_GET_PROTOCOL_FEATURES, zeros, 0, NULL, 0, &a), 1);
	assert_true(a.body.u64 == (BIT(SL_VU_F_MQ) | BIT(SL_VU_F_REPLY_ACK) | BIT(SL_VU_F_NET_MTU) |
				   BIT(SL_VU_F_CONFIGURE_MEM_SLOTS)));
	say_u64(&g, SL_VU_SET_PROTOCOL_FEATURES, a.body.u64);
	say(&g, SL_VU_SET_OWNER, zeros, 0, NULL, 0, NULL);
	assert_int_equal(say(&g, SL_VU_GET_QUEUE_NUM, zeros, 0, NULL, 0, &a), 1);
	assert_int_equal(a.body.u64, 2);
	assert_int_equal(say(&g, SL_VU_GET_MAX_MEM_SLOTS, zeros, 0, NULL, 0, &a), 1);
	assert_int_equal(a.body.u64, SL_VHOST_REGIONS);
	for (i = 0; i < sl_nb(offloads); i++)
		refused_u64(SL_VHOST_MSG_VALUE, SL_VU_SET_FEATURES, F_PLAIN | BIT(offloads[i]));
	refused_u64(SL_VHOST_MSG_VALUE, SL_VU_SET_PROTOCOL_FEATURES, BIT(12) /* inflight */);
	guest_close(&g);
}

/* Every request there is, known or not: each wrong size, each number of descriptors. */
static void test_shapes(void **state)
{
	static const struct { uint32_t request, len; int fds_min, fds_max; } allowed[] = {
		{ SL_VU_GET_FEATURES, 0, 0, 0 }, { SL_VU_SET_FEATURES, 8, 0, 0 }, { SL_VU_SET_OWNER, 0, 0, 0 },
		{ SL_VU_RESET_OWNER, 0, 0, 0 }, { SL_VU_SET_VRING_NUM, 8, 0, 0 }, { SL_VU_SET_VRING_ADDR, 40, 0, 0 },
		{ SL_VU_SET_VRING_BASE, 8, 0, 0 }, { SL_VU_GET_VRING_BASE, 8, 0, 0 }, { SL_VU_SET_VRING_KICK, 8, 1, 1 },
		{ SL_VU_SET_VRING_CALL, 8, 1, 1 }, { SL_VU_SET_VRING_ERR, 8, 1, 1 }, { SL_VU_GET_PROTOCOL_FEATURES, 0, 0, 0 },
		{ SL_VU_SET_PROTOCOL_FEATURES, 8, 0, 0 }, { SL_VU_GET_QUEUE_NUM, 0, 0, 0 }, { SL_VU_SET_VRING_ENABLE, 8, 0, 0 },
		{ SL_VU_SEND_RARP, 8, 0, 0 }, { SL_VU_GET_MAX_MEM_SLOTS, 0, 0, 0 }, { SL_VU_SET_MEM_TABLE, 8, 0, 0 },
	};
	uint32_t request, len, nb_fd;
	int fds[SL_VU_FDS_MAX];
	size_t i;

	(void)state;
	guest_open(&g, 1);
	guest_setup(&g, F_PLAIN);
	for (i = 0; i < sl_nb(fds); i++)
		fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (request = 0; request < 60; request++) {
		for (i = 0; i < sl_nb(allowed) && allowed[i].request != request; i++)
			;
		if (i == sl_nb(allowed)) {
			if (request == SL_VU_ADD_MEM_REG || request == SL_VU_REM_MEM_REG || request == SL_VU_NET_SET_MTU)
				continue;
			refused(request && request < SL_VU_REQUEST_NB ? SL_VHOST_MSG_REFUSED : SL_VHOST_MSG_HEADER, request,
				zeros, 8, NULL, 0);
			continue;
		}
		for (len = 0; len < 300; len += 4)
			if (len != allowed[i].len)
				assert_int_equal(say(&g, request, zeros, len, NULL, 0, NULL), -EPROTO);
		for (nb_fd = 0; nb_fd <= SL_VU_FDS_MAX; nb_fd++)
			if ((int)nb_fd < allowed[i].fds_min || (int)nb_fd > allowed[i].fds_max)
				refused(SL_VHOST_MSG_FDS, request, zeros, allowed[i].len, fds, nb_fd);
	}
	for (i = 0; i < sl_nb(fds); i++)
		close(fds[i]);
	guest_close(&g);
}

static void test_headers(void **state)
{
	static const uint32_t flags[] = { 0, 2, 3, SL_VU_VERSION | SL_VU_REPLY, SL_VU_VERSION | 16, 0xffffffff };
	struct sl_vu_msg answer;
	size_t i;

	(void)state;
	guest_open(&g, 1);
	for (i = 0; i < sl_nb(flags); i++) {
		struct sl_vu_msg m = { .hdr = { SL_VU_GET_FEATURES, flags[i], 0 } };

		assert_int_equal(sl_vhost_message(&g.dev, &m, &answer), -EPROTO);
		assert_int_equal(g.dev.count[SL_VHOST_MSG_HEADER], i + 1);
	}
	guest_close(&g);
}

static void test_order(void **state)
{
	uint64_t one = 1;
	int fd;

	(void)state;
	guest_open(&g, 1);
	/* features that were not negotiated */
	refused(SL_VHOST_MSG_STATE, SL_VU_GET_QUEUE_NUM, zeros, 0, NULL, 0);
	refused(SL_VHOST_MSG_STATE, SL_VU_GET_MAX_MEM_SLOTS, zeros, 0, NULL, 0);
	refused_u64(SL_VHOST_MSG_STATE, SL_VU_NET_SET_MTU, 1500);
	/* a ring without anything */
	guest_setup(&g, F_PLAIN);
	fd = eventfd(0, EFD_NONBLOCK);
	assert_int_equal(say(&g, SL_VU_SET_VRING_KICK, &one, 8, &fd, 1, NULL), -EPROTO);
	assert_int_equal(g.dev.count[SL_VHOST_RING_SETUP], 1);
	close(fd);
	guest_close(&g);
	/* while a ring runs */
	guest_start(&g, F_PLAIN, 8, 0);
	assert_int_equal(say_u64(&g, SL_VU_SET_FEATURES, F_PLAIN), 0);
	refused_u64(SL_VHOST_MSG_STATE, SL_VU_SET_FEATURES, F_PLAIN | F_PACKED);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, FROM, 4), -EPROTO);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_BASE, FROM, 4), -EPROTO);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, 2, 4), -EPROTO);   /* no such ring */
	guest_close(&g);
}

static void test_ring_setup(void **state)
{
	static const struct { uint64_t features; uint32_t size, base; uint64_t uva; bool ok; } setups[] = {
		{ F_PLAIN, 8, 0, GUEST_UVA, true }, { F_PLAIN, 7, 0, GUEST_UVA, false },
		{ F_PLAIN | F_PACKED, 7, 6, GUEST_UVA, true }, { F_PLAIN | F_PACKED, 7, 7, GUEST_UVA, true },
		{ F_PLAIN, 8, 0x10000, GUEST_UVA, true }, { F_PLAIN, 8, 0, GUEST_UVA + GUEST_LEN - 16, false },
		{ F_PLAIN, 8, 0, GUEST_UVA - 16, false }, { F_PLAIN, 8, 0, 0, false },
		{ F_PLAIN, 8, 0, 0xfffffffffffffff0, false }, { BIT(30), 8, 0, GUEST_UVA, false },   /* legacy */
		{ F_PLAIN, 32768, 0, GUEST_UVA, true }, { F_PLAIN | F_PACKED, 32768, 0, GUEST_UVA + GUEST_LEN - 16, false },
	};
	uint64_t one = 1;
	size_t i;

	(void)state;
	for (i = 0; i < sl_nb(setups); i++) {
		struct sl_vu_addr a = { 1, 0, setups[i].uva, GUEST_UVA + (1 << 20), GUEST_UVA + (2 << 20), 0 };
		int fd = eventfd(0, EFD_NONBLOCK);

		guest_open(&g, 1);
		guest_setup(&g, setups[i].features);
		assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, 1, setups[i].size), 0);
		assert_int_equal(say_state(&g, SL_VU_SET_VRING_BASE, 1, setups[i].base), 0);
		assert_int_equal(say(&g, SL_VU_SET_VRING_ADDR, &a, sizeof(a), NULL, 0, NULL), 0);
		assert_int_equal(say(&g, SL_VU_SET_VRING_KICK, &one, 8, &fd, 1, NULL), setups[i].ok ? 0 : -EPROTO);
		assert_int_equal(g.dev.count[SL_VHOST_RING_SETUP], !setups[i].ok);
		close(fd);
		guest_close(&g);
	}
	guest_open(&g, 1);
	guest_setup(&g, F_PLAIN);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, 1, 0), -EPROTO);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, 1, 32769), -EPROTO);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_NUM, 1, 0xffffffff), -EPROTO);
	assert_int_equal(say_state(&g, SL_VU_SET_VRING_ENABLE, 1, 2), -EPROTO);
	guest_close(&g);
}

static int region_add(const struct sl_vu_region *r, int fd)
{
	struct sl_vu_one_region one = { .region = *r };

	return say(&g, SL_VU_ADD_MEM_REG, &one, sizeof(one), &fd, 1, NULL);
}

static void test_regions(void **state)
{
	const uint64_t len = 1 << 20, gpa = 0x100000000, uva = 0x100000;
	static const uint64_t top = 0xffffffffffffffff;
	const struct sl_vu_region bad[] = {
		{ GUEST_GPA, len, uva, 0 }, { GUEST_GPA - 1, len, uva, 0 }, { GUEST_GPA + GUEST_LEN - 1, len, uva, 0 },
		{ gpa, len, GUEST_UVA, 0 }, { gpa, len, GUEST_UVA - len + 1, 0 },             /* overlaps */
		{ gpa, GUEST_LEN + 1, uva, 0 }, { gpa, 1, uva, GUEST_LEN }, { gpa, len, uva, top - len + 1 },   /* file's end */
		{ gpa, 0, uva, 0 }, { top, len, uva, 0 }, { gpa, len, top, 0 }, { gpa, top, uva, 0 }, { gpa, len, uva, top },
	};
	struct sl_vu_one_region one = { .region = { gpa, len, uva, 4096 } };
	int pipes[2], unsealed, plugged;
	size_t i;

	(void)state;
	guest_open(&g, 1);
	guest_setup(&g, F_PLAIN);
	for (i = 0; i < sl_nb(bad); i++) {
		assert_int_equal(region_add(&bad[i], g.fd), -EPROTO);
		assert_int_equal(g.dev.mem.nb, 1);
	}
	/* not a file */
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(region_add(&one.region, pipes[0]), -EPROTO);
	close(pipes[0]);
	close(pipes[1]);
	/* good, used, taken away; the offset need not be of pages */
	one.region.file_off = 5;
	assert_int_equal(region_add(&one.region, g.fd), 0);
	g.mem[5] = 77;
	assert_int_equal(*(uint8_t *)sl_vhost_gpa(&g.dev.mem, gpa, len), 77);
	assert_null(sl_vhost_gpa(&g.dev.mem, gpa, len + 1));
	/* once for each queue pair, as QEMU says it */
	assert_int_equal(region_add(&one.region, g.fd), 0);
	assert_int_equal(g.dev.mem.nb, 2);
	assert_int_equal(say(&g, SL_VU_REM_MEM_REG, &one, sizeof(one), NULL, 0, NULL), 0);
	assert_int_equal(say(&g, SL_VU_REM_MEM_REG, &one, sizeof(one), NULL, 0, NULL), 0);
	assert_int_equal(g.dev.mem.nb, 1);
	assert_null(sl_vhost_gpa(&g.dev.mem, gpa, 1));
	/* a file that can be cut short is noted, but never touched */
	unsealed = memfd_create("unsealed", MFD_CLOEXEC);
	assert_int_equal(ftruncate(unsealed, (off_t)len), 0);
	one.region.file_off = 0;
	assert_int_equal(region_add(&one.region, unsealed), 0);
	assert_int_equal(region_add(&one.region, g.fd), -EPROTO);   /* the same addresses of another file */
	assert_null(sl_vhost_gpa(&g.dev.mem, gpa, 1));
	assert_int_equal(ftruncate(unsealed, 0), 0);
	close(unsealed);
	/* another file is something that was plugged into the machine, not its memory */
	plugged = memfd_create("plugged", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(plugged, (off_t)len), 0);
	assert_int_equal(fcntl(plugged, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	one.region.gpa += len;
	one.region.uva += len;
	assert_int_equal(region_add(&one.region, plugged), 0);
	assert_null(sl_vhost_gpa(&g.dev.mem, one.region.gpa, 1));
	close(plugged);
	/* one more than there is room for */
	for (i = 3; i < SL_VHOST_REGIONS; i++)
		assert_int_equal(region_add(&(struct sl_vu_region){ gpa + i * len, len, uva + i * len, 0 }, g.fd), 0);
	assert_int_equal(region_add(&(struct sl_vu_region){ gpa + i * len, len, uva + i * len, 0 }, g.fd), -EPROTO);
	guest_close(&g);
}

static void test_tables(void **state)
{
	struct sl_vu_table t = { .nb = 2, .region = {{ 0, 4096, 0x10000, 0 }, { 4095, 4096, 0x20000, 0 }} };
	int fds[9] = { g.fd };
	size_t i;

	(void)state;
	guest_open(&g, 1);
	guest_setup(&g, F_PLAIN);
	for (i = 0; i < sl_nb(fds); i++)
		fds[i] = g.fd;
	refused(SL_VHOST_MSG_MEMORY, SL_VU_SET_MEM_TABLE, &t, 8 + 64, fds, 2);
	t.region[1].gpa = 4096;
	refused(SL_VHOST_MSG_FDS, SL_VU_SET_MEM_TABLE, &t, 8 + 64, fds, 1);
	refused(SL_VHOST_MSG_VALUE, SL_VU_SET_MEM_TABLE, &t, 8 + 32, fds, 1);
	t.nb = 9;
	refused(SL_VHOST_MSG_SIZE, SL_VU_SET_MEM_TABLE, &t, 8 + 9 * 32, fds, 8);
	refused(SL_VHOST_MSG_VALUE, SL_VU_SET_MEM_TABLE, &t, 8 + 8 * 32, fds, 8);
	t.nb = 0x08000002;   /* times 32 wraps to 64 */
	refused(SL_VHOST_MSG_VALUE, SL_VU_SET_MEM_TABLE, &t, 8 + 64, fds, 2);
	t.nb = 2;
	assert_int_equal(say(&g, SL_VU_SET_MEM_TABLE, &t, 8 + 64, fds, 2, NULL), 0);
	guest_close(&g);
}

/* What is no eventfd could block us or worse. */
static void test_wrong_descriptors(void **state)
{
	static const uint32_t requests[] = { SL_VU_SET_VRING_KICK, SL_VU_SET_VRING_CALL, SL_VU_SET_VRING_ERR };
	uint64_t ring = FROM;
	int pipes[2], file;
	size_t i;

	(void)state;
	guest_start(&g, F_PLAIN, 8, 0);
	assert_int_equal(pipe(pipes), 0);
	file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	for (i = 0; i < sl_nb(requests); i++) {
		refused(SL_VHOST_MSG_FDS, requests[i], &ring, 8, &pipes[0], 1);
		refused(SL_VHOST_MSG_FDS, requests[i], &ring, 8, &file, 1);
		refused_u64(SL_VHOST_MSG_VALUE, requests[i], FROM | 0x200);
	}
	/* no interrupts at all is fine, no kicks is not */
	assert_int_equal(say_u64(&g, SL_VU_SET_VRING_CALL, FROM | SL_VU_NO_FD), 0);
	assert_int_equal(say_u64(&g, SL_VU_SET_VRING_ERR, FROM | SL_VU_NO_FD), 0);
	refused_u64(SL_VHOST_MSG_REFUSED, SL_VU_SET_VRING_KICK, FROM | SL_VU_NO_FD);
	close(pipes[0]);
	close(pipes[1]);
	close(file);
	guest_close(&g);
}

static void test_reply_ack(void **state)
{
	struct sl_vu_msg m, a;

	(void)state;
	guest_open(&g, 1);
	guest_setup(&g, F_PLAIN);
	m = (struct sl_vu_msg){ .hdr = { SL_VU_SET_FEATURES, SL_VU_VERSION | SL_VU_NEED_REPLY, 8 }, .body.u64 = F_PLAIN };
	assert_int_equal(sl_vhost_message(&g.dev, &m, &a), 1);
	assert_int_equal(a.body.u64, 0);
	m.body.u64 = ~0ull;
	assert_int_equal(sl_vhost_message(&g.dev, &m, &a), -EPROTO);
	assert_int_equal(a.hdr.request, SL_VU_SET_FEATURES);
	assert_int_equal(a.body.u64, 1);
	m = (struct sl_vu_msg){ .hdr = { SL_VU_GET_FEATURES, SL_VU_VERSION | SL_VU_NEED_REPLY, 0 } };
	assert_int_equal(sl_vhost_message(&g.dev, &m, &a), 1);
	assert_true(a.body.u64 == sl_vhost_features());
	guest_close(&g);
}

/* Nothing of a peer stays: descriptors, mappings. */
static void test_no_leak(void **state)
{
	uint32_t i, open = nb_open_fd();

	(void)state;
	for (i = 0; i < 200; i++) {
		guest_start(&g, F_PLAIN, 8, 0);
		if (i % 2)
			say(&g, SL_VU_RESET_OWNER, zeros, 0, NULL, 0, NULL);
		guest_close(&g);
	}
	assert_int_equal(nb_open_fd(), open);
}

/* Each has a name, in order. */
static void test_names(void **state)
{
	(void)state;
	assert_string_equal(sl_vhost_count_name(SL_VHOST_TO_FRAMES), "to_frames");
	assert_string_equal(sl_vhost_count_name(SL_VHOST_LINK_QUARANTINED), "link_quarantined");
	assert_null(sl_vhost_count_name(SL_VHOST_COUNT_NB));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_offer), cmocka_unit_test(test_shapes), cmocka_unit_test(test_headers),
		cmocka_unit_test(test_order), cmocka_unit_test(test_ring_setup), cmocka_unit_test(test_regions),
		cmocka_unit_test(test_tables), cmocka_unit_test(test_wrong_descriptors), cmocka_unit_test(test_reply_ack),
		cmocka_unit_test(test_no_leak), cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
