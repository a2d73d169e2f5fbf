/* SPDX-License-Identifier: Apache-2.0 */
/* The first process of a guest: it keeps its rights, runs nobody's protocol, and hands the instance what that may have. */
#include "instance/guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "instance/instance.h"
#include "layers/tcp/net.h"

#define MODULES "/modules"

enum {
	LOOK_MS = 100,          /* a notice of the kernel may be lost */
	NET_TIMEOUT_MS = 10000,
};

struct first {
	struct sl_log log;
	int uevents;
	int sock;               /* to the instance: it asks, and is granted */
	struct sl_guest_doorbell doorbell;
	struct sl_control *control;
};

/* --- the machine --- */

static int mounts_make(void)
{
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, NULL) || mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV, NULL) ||
	    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV, NULL))
		return -errno;
	return chmod("/", 0755) ? -errno : 0;   /* it is anybody's to write to: DPDK takes no driver from there */
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

/* --- what the instance is granted --- */

struct grants {
	struct sl_grants head;
	int fds[SL_GRANTS_MAX];
};

static void grant_add(struct grants *g, enum sl_grant_kind kind, uint32_t number, int fd)
{
	if (fd < 0 || g->head.nb == SL_GRANTS_MAX)
		return;
	g->head.entries[g->head.nb] = (struct sl_grant){(__u32)kind, number};
	g->fds[g->head.nb++] = fd;
}

static void grants_send(const struct first *f, struct grants *g)
{
	union {
		char room[CMSG_SPACE(sizeof(g->fds))];
		struct cmsghdr align;
	} control = {0};
	size_t len = g->head.nb * sizeof(int);
	struct iovec v = {&g->head, offsetof(struct sl_grants, entries) + g->head.nb * sizeof(struct sl_grant)};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};

	if (len) {
		struct cmsghdr *c = &control.align;

		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(len);
		*c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(len)};
		memcpy(CMSG_DATA(c), g->fds, len);
	}
	if (sendmsg(f->sock, &m, MSG_NOSIGNAL) < 0)
		sl_log(&f->log, "warning", "grants: %s", strerror(errno));
	while (g->head.nb)
		close(g->fds[--g->head.nb]);
}

static bool superseded(const struct first *f, uint32_t seq)
{
	const struct sl_assignment *a = (const void *)((const char *)f->control + f->control->assignment_off);

	return __atomic_load_n(&a->seq, __ATOMIC_RELAXED) != seq;
}

/* A device may be plugged after the assignment was written. One that does not come is missed by the instance. */
static int edge_wait(const struct first *f, uint32_t edge_id, uint32_t seq)
{
	uint64_t deadline = sl_now_ns() + SL_GUEST_EDGES_TIMEOUT_MS * 1000000ull;
	int fd;

	while ((fd = sl_guest_edge_open(edge_id, &f->log)) == -EAGAIN && sl_now_ns() < deadline && !superseded(f, seq))
		sl_guest_uevents_wait(f->uevents, LOOK_MS);
	return fd;
}

static void listeners_add(const struct first *f, const struct sl_assignment *a, struct grants *g)
{
	struct sl_listener listeners[SL_LISTENERS_MAX];
	uint32_t len;
	const struct sl_tcp_conf *conf = sl_conf_find(f->control, SL_CONF_TCP, 0, &len);
	int nb = conf && len == sizeof(*conf) ? sl_net_setup(a, (int)conf->backlog, NET_TIMEOUT_MS, listeners) : -EINVAL;

	if (nb < 0)
		sl_log(&f->log, "error", "eth0: %s", strerror(-nb));
	for (int i = 0; i < nb; i++)
		grant_add(g, SL_GRANT_LISTENER, listeners[i].service, listeners[i].fd);
}

static void root_add(const struct first *f, struct grants *g)
{
	uint32_t len;
	const struct sl_app_conf *conf = sl_conf_find(f->control, SL_CONF_APP, 0, &len);

	if (conf && len == sizeof(*conf) && *conf->root && !conf->root[sizeof(conf->root) - 1])
		grant_add(g, SL_GRANT_ROOT, 0, open((const char *)conf->root, O_PATH | O_DIRECTORY | O_CLOEXEC));
}

/* What the assignment of that seq needs. */
static void assignment_grant(const struct first *f, uint32_t seq)
{
	const struct sl_assignment *shared = (const void *)((const char *)f->control + f->control->assignment_off);
	struct grants g = {.head = {.assignment = seq}};
	struct sl_assignment a;

	if (sl_seq_copy(&shared->seq, &a, shared, sizeof(a)) != seq || a.layer == SL_LAYER_NONE)
		return;
	if (a.layer == SL_LAYER_TCP)
		listeners_add(f, &a, &g);
	if (a.layer == SL_LAYER_APP)
		root_add(f, &g);
	for (unsigned i = 0; i < sl_min(a.nb_edges, (__u8)SL_EDGES_MAX); i++)
		grant_add(&g, SL_GRANT_EDGE, a.edges[i].edge_id, edge_wait(f, a.edges[i].edge_id, seq));
	grants_send(f, &g);
}

/* --- life --- */

/* A restored machine continues with its twins' random numbers. The order matters: the last call is the one that takes
 * effect. OpenSSL's generators fetch from the kernel after it, in the instance. */
static int entropy_take(const struct first *f)
{
	struct sl_control *c = f->control;
	struct {
		struct rand_pool_info info;
		__u8 seed[sizeof(c->entropy)];
	} pool = {.info = {.entropy_count = 8 * sizeof(pool.seed), .buf_size = sizeof(pool.seed)}};
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	memcpy(pool.info.buf, c->entropy, sizeof(pool.seed));
	explicit_bzero(c->entropy, sizeof(pool.seed));   /* nobody shall learn it later */
	if (write(fd, pool.info.buf, sizeof(pool.seed)) != sizeof(pool.seed) || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
		err = -errno;
	close(fd);
	explicit_bzero(&pool, sizeof(pool));
	return err;
}

/* The doorbell device has come: the machine is somebody. */
static int control_grant(struct first *f)
{
	struct grants g = {0};
	int err;

	while ((err = sl_guest_doorbell_open(&f->doorbell, &f->log)) == -EAGAIN)
		sl_guest_uevents_wait(f->uevents, -1);
	err = err ? err : sl_control_map(f->doorbell.memory, f->doorbell.vm_id, &f->control);
	err = err ? err : entropy_take(f);
	if (err)
		return err;
	grant_add(&g, SL_GRANT_CONTROL, f->doorbell.vm_id, f->doorbell.memory);
	grant_add(&g, SL_GRANT_REGISTERS, f->doorbell.vm_id, f->doorbell.regs);
	grants_send(f, &g);
	return 0;
}

static void serve(struct first *f)
{
	uint32_t seq;
	int err = control_grant(f);

	if (err) {
		sl_log(&f->log, "error", "control region: %s", strerror(-err));
		shutdown(f->sock, SHUT_RDWR);
		return;
	}
	sl_net_prepare();   /* if it has an interface already */
	while (recv(f->sock, &seq, sizeof(seq), 0) == sizeof(seq))
		assignment_grant(f, seq);
}

static int prepare(struct first *f, int *theirs)
{
	int pair[2];

	f->uevents = sl_guest_uevents_open();   /* first: whatever comes from now on is noticed */
	if (f->uevents < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	f->sock = pair[0];
	*theirs = pair[1];
	return 0;
}

int sl_guest_main(const char *accelerator)
{
	struct first f = {.log = {.who = "\"vm_id\":0"}};
	int status = 0, sock = -1, err = mounts_make();
	pid_t child;

	err = err ? err : prepare(&f, &sock);
	if (err)
		sl_log(&f.log, "error", "mounts and sockets: %s", strerror(-err));
	modules_load(&f.log);
	child = fork();   /* pid 1 stays behind: its death would be a panic of the kernel, and not tell why */
	if (!child) {
		close(f.sock);
		close(f.uevents);
		_exit(sl_guest_instance(sock, accelerator));
	}
	close(sock);
	if (child > 0)
		serve(&f);
	while (child > 0 && waitpid(child, &status, 0) != child)
		;
	if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
		sl_log(&f.log, "error", "the instance ended: %s %d", child < 0 ? "fork" : WIFSIGNALED(status) ? "signal" : "exit status",
		       child < 0 ? errno : WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	reboot(RB_POWER_OFF);
	return 1;
}
