/* SPDX-License-Identifier: Apache-2.0 */
#include "rig.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"

void rig_fail(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void must(int err, const char *what)
{
	if (!err)
		return;
	errno = err < 0 ? -err : errno;
	rig_fail(what);
}

void rig_open(struct rig *r)
{
	r->shared = mmap(NULL, sizeof(*r->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r->shared == MAP_FAILED)
		rig_fail("shared page");
	for (unsigned i = 0; i < sl_nb(r->bell); i++) {
		r->bell[i] = eventfd(0, 0);
		if (r->bell[i] < 0)
			rig_fail("eventfd");
	}
}

static int region_fd(struct rig *r, struct sl_region *g, uint64_t page_len, unsigned flags)
{
	void *base;
	int fd;

	must(sl_region_plan(g, page_len), "plan a region");
	fd = memfd_create("sl-edge-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	if (fd < 0 || ftruncate(fd, (off_t)g->region_len))
		return -1;
	base = mmap(NULL, g->region_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (base == MAP_FAILED) {
		close(fd);
		return -1;
	}
	sl_region_format(base, g);
	munmap(base, g->region_len);
	r->huge = flags;
	return fd;
}

void rig_edge_make(struct rig *r, struct rig_edge *edge, uint8_t front_layer, uint16_t nb_back)
{
	struct sl_region g = {.nb_front = 1, .nb_back = nb_back, .front_layer = front_layer, .ring_cap = r->ring_cap};

	g.back_layer = (uint8_t)(front_layer + 1);
	g.edge_id = (uint32_t)(front_layer << 8 | g.back_layer);
	edge->front_layer = front_layer;
	edge->fd = region_fd(r, &g, 2 << 20, MFD_HUGETLB);
	if (edge->fd < 0) {
		fprintf(stderr, "bench: no hugepages left, measuring with 4 KiB pages\n");
		edge->fd = region_fd(r, &g, 4096, 0);
	}
	if (edge->fd < 0 || fcntl(edge->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		rig_fail("make a region");
}

static void count(struct sl_edge *e, enum sl_counter c)
{
	(void)e;
	if (c <= SL_CNT_QUARANTINED && c != SL_CNT_STALE_FLOW)   /* we send nothing bad, so this is a bug */
		abort();
}

static const struct sl_edge_ops ops = {.count = count};

static int doorbell(void *user, uint16_t vm_id)
{
	const struct rig *r = user;

	return r->bell[vm_id - 1];
}

struct sl_edge *rig_attach(struct rig *r, const struct rig_edge *edge, enum sl_side side, unsigned front)
{
	struct sl_edge_seat seat = {.edge_id = (uint32_t)(edge->front_layer << 8 | (edge->front_layer + 1)), .side = (uint8_t)side};
	struct sl_route_page page = {.seq = 2, .epoch = 1, .nb_routes = 1};
	unsigned own = side == SL_FRONT ? front : front + 1, peer = side == SL_FRONT ? front + 1 : front;
	uint8_t layer = (uint8_t)(edge->front_layer + side);
	struct sl_edge *e;

	/* incarnation and VMID by process: front + 1 is never 0 */
	seat.incarnation = own + 1;
	seat.peer_layer = (uint8_t)(edge->front_layer + !side);
	page.routes[0] = (struct sl_route){.incarnation = peer + 1, .vm_id = (uint16_t)(peer + 1), .weight = 1, .state = SL_VM_ACTIVE};
	must(sl_edge_attach(edge->fd, true, &seat, layer, (uint16_t)(own + 1), &ops, NULL, r, &e), "attach");
	sl_edge_routes_set(e, &page, doorbell);
	return e;
}

void rig_pin(unsigned core)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(core, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		rig_fail("pin to a core (two are needed)");
}

void rig_run(struct rig *r, unsigned nb, void (*run)(struct rig *r, unsigned i, void *arg), void *arg)
{
	int status, bad = 0;

	for (unsigned i = 0; i < nb; i++) {
		pid_t pid = fork();

		if (pid < 0)
			rig_fail("fork");
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		rig_pin(i % 2);
		run(r, i, arg);
		_exit(0);
	}
	for (unsigned i = 0; i < nb; i++) {
		if (wait(&status) < 0 || status)
			bad = 1;
		if (bad)
			kill(0, SIGTERM);   /* the others would wait for it for ever; we lead our process group */
	}
}

void rig_meet(struct rig *r, unsigned nb)
{
	__atomic_add_fetch(&r->shared->ready.v, 1, __ATOMIC_ACQ_REL);
	while (sl_observe_u64((__u64 *)&r->shared->ready.v) < nb)
		sched_yield();
}

void rig_payload_write(const struct rig *r, uint8_t *data, uint64_t id)
{
	static uint8_t source[SL_BIG_LEN];

	if (r->whole)
		memcpy(data, source, r->len);
	else
		memset(data, (int)id, sl_min(r->len, 64u));
	memcpy(data, &id, sizeof(id));
}

uint64_t rig_payload_read(const struct rig *r, const uint8_t *data)
{
	const uint64_t *w = (const void *)data;
	uint64_t sum = 0;
	uint32_t nb = (r->whole ? r->len : sl_min(r->len, 64u)) / 8;

	for (uint32_t i = 1; i < nb; i++)
		sum ^= w[i];
	__asm__ volatile("" : : "r"(sum));
	return nb ? w[0] : 0;
}

static uint32_t slots_fill(struct rig *r, struct sl_edge *e, uint64_t id, struct sl_buf *bufs, uint32_t nb)
{
	uint32_t i;

	for (i = 0; i < nb && !sl_buf_alloc(e, r->len, &bufs[i]); i++)
		if (bufs[i].cap < r->len) {   /* the big ones are all in use */
			sl_buf_free(e, &bufs[i]);
			break;
		}
	for (uint32_t k = 0; k < i; k++)
		rig_payload_write(r, bufs[k].data, id + k);
	return i;
}

uint32_t rig_send(struct rig *r, struct sl_edge *e, uint64_t *next_id, uint32_t nb)
{
	struct sl_request_packet p[RIG_BURST];
	struct sl_buf bufs[RIG_BURST];
	struct sl_link *l = e->up[0];

	nb = sl_min(sl_min(nb, (uint32_t)RIG_BURST), sl_link_room(l));
	if (r->len)
		nb = slots_fill(r, e, *next_id, bufs, nb);
	for (uint32_t i = 0; i < nb; i++)
		p[i] = (struct sl_request_packet){.request_id = *next_id + i, .op = SL_OP_DATA, .length = r->len};
	*next_id += nb;
	return sl_route_burst(l, p, r->len ? bufs : NULL, nb);
}
