/* SPDX-License-Identifier: Apache-2.0 */
#include "instance/guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/random.h>
#include <openssl/rand.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "instance/instance.h"

#define MODULES "/modules"

enum {
	EDGES_TIMEOUT_MS = 10000,
	LOOK_MS = 100,   /* a notice of the kernel may be lost */
};

/* --- the machine --- */

static int mounts_make(void)
{
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL) || mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV, NULL) ||
	    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV, NULL))
		return -errno;
	return 0;
}

static int module_load(const char *name)
{
	char path[300];
	int fd, err = 0;

	snprintf(path, sizeof(path), MODULES "/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
		err = -errno;
	close(fd);
	return err;
}

static int visible(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

/* In the order of their names, which is that of their dependence. One that fails is missed later, by whoever needs
 * it. */
static void modules_load(const struct sl_log *log)
{
	struct dirent **list;
	int n = scandir(MODULES, &list, visible, alphasort);

	for (int i = 0; i < n; i++) {
		int err = module_load(list[i]->d_name);

		if (err)
			sl_log(log, "warning", "module %s: %s", list[i]->d_name, strerror(-err));
		free(list[i]);
	}
	if (n >= 0)
		free(list);
}

/* --- the instance --- */

/* A restored machine continues with its twins' random numbers. The order matters: the last call is the one that takes
 * effect in the kernel, and OpenSSL's generators must fetch from there only after it. */
static int entropy_take(struct sl_runner *r)
{
	struct {
		struct rand_pool_info info;
		__u8 seed[sizeof(r->control->entropy)];
	} pool = {.info = {.entropy_count = 8 * sizeof(pool.seed), .buf_size = sizeof(pool.seed)}};
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	memcpy(pool.info.buf, r->control->entropy, sizeof(pool.seed));
	explicit_bzero(r->control->entropy, sizeof(pool.seed));   /* nobody shall learn it later */
	if (write(fd, pool.info.buf, sizeof(pool.seed)) != sizeof(pool.seed) || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
		err = -errno;
	close(fd);
	explicit_bzero(&pool, sizeof(pool));
	return err ? err : RAND_poll() == 1 ? 0 : -EIO;
}

static int control_wait(struct sl_runner *r)
{
	struct sl_guest *g = r->guest;
	int err;

	while (g->doorbell_fd < 0) {
		sl_guest_devices_look(g, &r->log);
		if (g->doorbell_fd < 0)
			sl_guest_wait(g, -1);
	}
	r->control_fd = g->doorbell_fd;
	r->doorbells.sock = -1;
	r->doorbells.own = g->bell;
	r->doorbells.vm_id = g->vm_id;
	err = sl_control_attach(r);
	if (err)
		return err;
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":%u", r->inst.vm_id);
	err = entropy_take(r);
	return err ? sl_instance_fail(&r->inst, -err, "random seed: %s", strerror(-err)) : 0;
}

/* Warm: alive and published, without a layer. */
static int assignment_wait(struct sl_runner *r)
{
	int err;

	r->awake_since = r->busy_since = sl_now_ns();
	sl_state_set(r, SL_VM_BOOTING);
	while ((err = sl_assignment_take(r)) == -EAGAIN) {
		sl_guest_wait(r->guest, LOOK_MS);
		r->inst.now_ns = r->awake_since = r->busy_since = sl_now_ns();
		sl_status_publish(r, false);
	}
	if (!err)
		snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":%u,\"layer\":\"%s\"", r->inst.vm_id, r->inst.layer->name);
	return err;
}

/* --- edges --- */

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

static int edge_wait(struct sl_runner *r, uint32_t edge_id, uint64_t deadline_ns)
{
	struct sl_guest *g = r->guest;
	struct sl_guest_device *d;
	int err;

	for (; !(d = sl_guest_edge(g, edge_id)); sl_guest_devices_look(g, &r->log)) {
		if (sl_now_ns() >= deadline_ns)
			return sl_instance_fail(&r->inst, ETIMEDOUT, "no device with the memory of edge %#x", edge_id);
		sl_guest_wait(g, LOOK_MS);
	}
	err = sl_edge_take(r, edge_id, d->fd);
	if (err || !g->driver)
		return err;
	d->watch = (struct sl_watch){.fd = d->fd, .ready = device_gone};   /* no event asked for: EPOLLHUP comes unasked */
	err = sl_watch_add(&r->inst, &d->watch);
	return err ? sl_instance_fail(&r->inst, -err, "epoll: %s", strerror(-err)) : 0;
}

static int edges_wait(struct sl_runner *r)
{
	struct sigaction lost = {.sa_handler = bus_error, .sa_flags = (int)SA_RESETHAND};
	uint64_t deadline = sl_now_ns() + EDGES_TIMEOUT_MS * 1000000ull;

	running = r;
	if (sigaction(SIGBUS, &lost, NULL))
		return -errno;
	sl_guest_devices_look(r->guest, &r->log);
	for (r->nb_edges = 0; r->nb_edges < r->inst.assignment.nb_edges; r->nb_edges++) {
		int err = edge_wait(r, r->inst.assignment.edges[r->nb_edges].edge_id, deadline);

		if (err)
			return err;
	}
	return 0;
}

/* --- the whole --- */

static int prepare(struct sl_runner *r)
{
	const struct sl_layer *layer;
	int err = control_wait(r);

	err = err ? err : assignment_wait(r);
	if (err)
		return err;
	layer = r->inst.layer;
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epfd < 0)
		return sl_instance_fail(&r->inst, errno, "epoll: %s", strerror(errno));
	err = layer->init ? layer->init(&r->inst) : 0;
	err = !err && layer->setup ? layer->setup(&r->inst) : err;
	err = err ? err : edges_wait(r);
	if (err)
		return err;
	err = sl_sandbox_close_guest(layer->syscalls);
	return err ? sl_instance_fail(&r->inst, -err, "sandbox: %s", strerror(-err)) : 0;
}

static int instance_run(void)
{
	struct sl_runner *r = calloc(1, sizeof(*r));
	struct sl_guest *g = calloc(1, sizeof(*g));
	int err;

	if (!r || !g)
		return -ENOMEM;
	signal(SIGPIPE, SIG_IGN);
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":0");
	r->guest = g;
	err = sl_guest_open(g);
	if (err)
		return sl_instance_fail(&r->inst, -err, "guest: %s", strerror(-err));
	err = prepare(r);
	err = err ? err : sl_loop_run(r);
	if (err && r->status)
		sl_state_set(r, SL_VM_FAILED);
	return err;
}

int sl_guest_main(void)
{
	struct sl_log log = {.who = "\"vm_id\":0"};
	int status = 0, err = mounts_make();
	pid_t child;

	if (err)
		sl_log(&log, "error", "mounts: %s", strerror(-err));
	modules_load(&log);
	child = fork();   /* pid 1 stays behind: its death would be a panic of the kernel, and not tell why */
	if (!child)
		_exit(instance_run() ? 1 : 0);
	while (child > 0 && waitpid(child, &status, 0) != child)
		;
	if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
		sl_log(&log, "error", "the instance ended: %s %d", child < 0 ? "fork" : WIFSIGNALED(status) ? "signal" : "exit status",
		       child < 0 ? errno : WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	reboot(RB_POWER_OFF);
	return 1;
}
