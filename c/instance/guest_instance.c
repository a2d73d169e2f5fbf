/* SPDX-License-Identifier: Apache-2.0 */
/* The instance in a guest: as a process instance, but for where its descriptors come from and how its doorbells ring. */
#include <openssl/rand.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"
#include "instance/guest.h"
#include "instance/instance.h"

enum {
	PAGE_LEN = 4096,
	/* without the driver, as nobody can wake us; each wake-up under TCG is about 0.4 ms of a core */
	SLEEP_BUSY_MS = 2,
	SLEEP_IDLE_MS = 40,
	BUSY_NS = 500000000,   /* since the last work */
};

/* --- edges that may be unplugged --- */

static struct sl_runner *running;   /* for the signal handler, which gets no argument */

/* The memory of an edge was taken away under us. Nothing may look at an edge any more, and nothing can go on without
 * it. */
static _Noreturn void edge_lost(struct sl_runner *r)
{
	static const char why[] = "an edge's memory was unplugged while in use";

	r->nb_edges = 0;
	r->error_code = ENODEV;
	memcpy(r->error, why, sizeof(why));
	sl_state_set(r, SL_VM_FAILED);
	_exit(1);
}

static void bus_error(int number)
{
	(void)number;
	edge_lost(running);   /* the control region is memory of a device too: if that is gone, the second signal ends us */
}

static void device_gone(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	edge_lost(sl_runner_of(inst));
}

int sl_guest_edge_watch(struct sl_runner *r, unsigned n, int fd)
{
	struct sl_watch *w = &r->guest->edges[n];
	int err;

	*w = (struct sl_watch){.fd = fd, .ready = device_gone};   /* no event asked for: EPOLLHUP comes unasked */
	err = r->guest->driver ? sl_watch_add(&r->inst, w) : 0;
	return err ? sl_instance_fail(&r->inst, -err, "epoll: %s", strerror(-err)) : 0;
}

void sl_guest_edge_forget(struct sl_runner *r, unsigned n)
{
	struct sl_watch *w = &r->guest->edges[n];

	if (w->fd < 0)
		return;
	sl_watch_del(&r->inst, w);
	close(w->fd);
	w->fd = -1;
}

/* --- doorbells --- */

int sl_guest_sleep_ms(struct sl_guest *g, const struct sl_instance *inst, int timeout_ms)
{
	if (g->driver)
		return timeout_ms;
	if (inst->active_flows || inst->requests != g->requests) {
		g->requests = inst->requests;
		g->busy_until_ns = inst->now_ns + BUSY_NS;
	}
	return sl_min(timeout_ms, inst->now_ns < g->busy_until_ns ? (int)SLEEP_BUSY_MS : (int)SLEEP_IDLE_MS);
}

bool sl_guest_ring(const struct sl_guest *g, uint16_t vm_id)
{
	uint32_t bell = (uint32_t)vm_id << 16;   /* the only vector of it that we were told of */

	if (!g->regs)
		return write(g->doorbell.memory, &bell, sizeof(bell)) == sizeof(bell);
	sl_publish_u32(&g->regs[SL_IVSHMEM_REG_DOORBELL / 4], bell);
	return true;
}

int sl_guest_bell_bind(const struct sl_guest *g, unsigned number, int fd)
{
	struct sl_ivshmem_eventfd e = {.vector = number, .fd = fd};

	return g->driver && ioctl(g->doorbell.memory, SL_GUEST_IOC_EVENTFD, &e) ? -errno : 0;
}

void sl_guest_ask(struct sl_runner *r)
{
	uint32_t seq = r->inst.assignment.seq;

	if (write(r->grants_sock, &seq, sizeof(seq)) != sizeof(seq))
		sl_log(&r->log, "warning", "the guest's first process is gone");
}

/* --- life --- */

/* Blocks until the doorbell device has been plugged: for ever, in a template. */
static int control_wait(struct sl_runner *r)
{
	struct sl_guest *g = r->guest;
	struct pollfd p = {.fd = r->grants_sock, .events = POLLIN};

	sl_log(&r->log, "info", "booted");   /* to whoever makes a template of this machine */
	while (!r->granted.nb) {
		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			return -errno;
		if (p.revents & (POLLHUP | POLLERR))
			return -EPIPE;
		sl_grants_recv(r);
	}
	g->doorbell.vm_id = (uint16_t)r->granted.entries[0].number;
	g->doorbell.memory = sl_instance_grant(&r->inst, SL_GRANT_CONTROL, g->doorbell.vm_id);
	g->doorbell.regs = sl_instance_grant(&r->inst, SL_GRANT_REGISTERS, g->doorbell.vm_id);
	if (g->doorbell.memory < 0)
		return -EPROTO;
	if (g->doorbell.regs < 0)
		return 0;
	g->regs = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, g->doorbell.regs, 0);
	return g->regs == MAP_FAILED ? -errno : 0;
}

/* All that can be done before it is known who we are: so a snapshot contains it. */
static int walls_close(struct sl_runner *r, const char *accelerator)
{
	struct sigaction lost = {.sa_handler = bus_error, .sa_flags = (int)SA_RESETHAND};
	bool followed = !accelerator && sl_guest_accelerators_follow(r);
	int err;

	sl_accelerator_load(r, accelerator);
	err = sl_layers_load(r);
	if (err)
		return err;
	running = r;
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epfd < 0 || sigaction(SIGBUS, &lost, NULL) || unshare(CLONE_NEWNS))
		return -errno;
	return sl_sandbox_close_guest(!followed);
}

static int prepare(struct sl_runner *r, const char *accelerator)
{
	struct sl_guest *g = r->guest;
	int err = walls_close(r, accelerator);

	if (err)
		return sl_instance_fail(&r->inst, -err, "sandbox: %s", strerror(-err));
	err = control_wait(r);
	/* OpenSSL's generators are those of the snapshot, until they fetch from the kernel, which has been seeded */
	if (!err && RAND_poll() != 1)
		err = -EIO;
	if (err)
		return sl_instance_fail(&r->inst, -err, "doorbell device: %s", strerror(-err));
	r->control_fd = g->doorbell.memory;
	r->doorbells.sock = -1;
	r->doorbells.vm_id = g->doorbell.vm_id;
	err = sl_control_attach(r);
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":%u", r->inst.vm_id);
	return err;
}

int sl_guest_instance(int sock, const char *accelerator)
{
	struct sl_runner *r = calloc(1, sizeof(*r));
	struct sl_guest *g = calloc(1, sizeof(*g));
	int err;

	if (!r || !g)
		return 1;
	for (unsigned i = 0; i < SL_BELLS; i++)
		r->doorbells.own[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":0");
	g->driver = sl_guest_driver();
	for (unsigned i = 0; i < SL_EDGES_MAX; i++)
		g->edges[i].fd = -1;
	r->guest = g;
	r->grants_sock = sock;
	err = prepare(r, accelerator);
	err = err ? err : sl_loop_run(r);
	if (err && r->status)
		sl_state_set(r, SL_VM_FAILED);
	return err ? 1 : 0;
}
