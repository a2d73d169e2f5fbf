/* SPDX-License-Identifier: Apache-2.0 */
/* swarmline-router: between the NIC and the first layer's instances. Started by the manager as root inside the NIC's
 * network namespace; opens all that needs rights, gives the rights up, and then is one loop. It outlives the
 * manager. */
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "router/control.h"
#include "router/nic.h"
#include "router/ports/vhost.h"
#include "router/privileges.h"

enum {
	EVENTS_PER_TURN = 64,
	NIC_BURSTS_PER_TURN = 4,
	STATS_NS = 1000000000,       /* how often the kernel's counters are read while there is traffic */
	UNSENT_RETRY_MS = 1,
	VIOLATION_NS = 100000000,    /* at most one line in this time: the counters have all of them */
};

struct options {
	struct sl_nic_conf nic;
	uint32_t uid, gid;
	int counters_fd;
};

struct loop {
	struct sl_router router;
	struct sl_control control;
	struct sl_nic_stats stats_base;      /* what former routers had counted */
	uint64_t stats_ns;                   /* when to read the kernel's counters; 0: no traffic since */
	uint64_t violation_ns;               /* when the next line about a violation may be written */
	bool stop;
	int status;                          /* 0, or -errno: why it had to stop */
};

/* One line, key=value; only outside the fast path. */
__attribute__((format(printf, 2, 3))) static void say(const char *level, const char *fmt, ...)
{
	char line[512];
	int len = snprintf(line, sizeof(line), "level=%s who=router ", level);
	va_list args;

	va_start(args, fmt);
	len += vsnprintf(line + len, sizeof(line) - (size_t)len, fmt, args);
	va_end(args);
	len = sl_min(len, (int)sizeof(line) - 1);
	line[len] = '\n';
	/* not by stdio: it would need system calls that the sandbox refuses. A log that can not be written is lost */
	if (write(STDERR_FILENO, line, (size_t)len + 1) < 0)
		return;
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static int usage(void)
{
	fputs("usage: swarmline-router      --run-dir=DIR --counters-fd=N --ifname=NAME --queues=N --xskmap=PIN\n"
	      "       swarmline-router-dpdk --run-dir=DIR --counters-fd=N --device=DEVARGS --pins=DIR [--mtu=N]\n"
	      "                             [--eal=ARGUMENT]...\n"
	      "       both: [--uid=N] [--gid=N]\n", stderr);
	return -EINVAL;
}

static int number_parse(const char *text, uint32_t max, uint32_t *ret)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || v > max || *text == '-')
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

static int options_parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "run-dir", 1, NULL, 'r' }, { "ifname", 1, NULL, 'i' }, { "queues", 1, NULL, 'q' },
		{ "xskmap", 1, NULL, 'x' }, { "counters-fd", 1, NULL, 'c' }, { "uid", 1, NULL, 'u' },
		{ "gid", 1, NULL, 'g' }, { "device", 1, NULL, 'd' }, { "pins", 1, NULL, 'p' }, { "mtu", 1, NULL, 'm' },
		{ "eal", 1, NULL, 'e' }, { 0 },
	};
	uint32_t fd = UINT32_MAX, nb_eal = 0;
	int opt, err = 0;

	*o = (struct options){ .uid = 65534, .gid = 65534 };
	while (!err && (opt = getopt_long(argc, argv, "", longs, NULL)) != -1)
		switch (opt) {
		case 'r': o->nic.run_dir = optarg; break;
		case 'i': o->nic.ifname = optarg; break;
		case 'x': o->nic.xskmap = optarg; break;
		case 'q': err = number_parse(optarg, SL_QUEUES_MAX, &o->nic.queues); break;
		case 'd': o->nic.device = optarg; break;
		case 'p': o->nic.pins = optarg; break;
		case 'm': err = number_parse(optarg, SL_RTR_MTU_MAX, &o->nic.mtu); break;
		case 'e':
			err = nb_eal < SL_NIC_EAL_MAX ? 0 : -E2BIG;
			if (!err)
				o->nic.eal[nb_eal++] = optarg;
			break;
		case 'c': err = number_parse(optarg, INT32_MAX, &fd); break;
		case 'u': err = number_parse(optarg, UINT32_MAX - 1, &o->uid); break;
		case 'g': err = number_parse(optarg, UINT32_MAX - 1, &o->gid); break;
		default: err = -EINVAL;
		}
	o->counters_fd = (int)fd;
	if (err || optind != argc || !o->nic.run_dir || !sl_nic_conf_is_complete(&o->nic) || fd == UINT32_MAX)
		return usage();
	return 0;
}

static int counters_open(struct sl_router *r, int fd)
{
	struct stat st;
	void *mem;

	if (fstat(fd, &st))
		return -errno;
	if (st.st_size < (off_t)sizeof(struct sl_rtr_counters))
		return -EINVAL;
	mem = mmap(NULL, sizeof(struct sl_rtr_counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		return -errno;
	close(fd);
	sl_count_attach(&r->count, mem, (uint32_t)getpid(), r->start_ns);
	return 0;
}

static int signals_open(struct sl_router *r)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return -errno;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : sl_event_add(r->epoll_fd, fd, SL_EVENT_SIGNAL, 0);
}

/* Tells which step failed, so that one line is enough to mend it. */
static int step(const char *what, int err)
{
	if (err)
		say("error", "event=start step=%s error=\"%s\"", what, strerror(-err));
	return err;
}

static int start(struct loop *l, const struct options *o)
{
	struct sl_router *r = &l->router;
	char path[4096], why[SL_NIC_WHY_LEN];
	uint64_t seed[2];

	r->start_ns = sl_now_ns();
	r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epoll_fd < 0 || getrandom(seed, sizeof(seed), 0) != sizeof(seed))
		return step("begin", -errno);
	if (step("counters", counters_open(r, o->counters_fd)))
		return -1;
	if (sl_nic_open(r, &o->nic, why)) {
		say("error", "event=start %s", why);
		return -1;
	}
	if (step("signals", signals_open(r)))
		return -1;
	l->stats_base = (struct sl_nic_stats){
		r->count.total[SL_RTR_NIC_DROPPED], r->count.total[SL_RTR_NIC_RING_FULL],
		r->count.total[SL_RTR_NIC_FILL_EMPTY],
	};
	sl_bell_open(&r->bell);   /* if that fails, adding a vhost-user port does */
	if (step("memory guard", sl_guard_install()))
		return -1;
	sl_neighs_init(&r->neighs, &r->net, r->nic[0], &r->count, r->mac, seed);
	snprintf(path, sizeof(path), "%s/router.sock", o->nic.run_dir);
	if (step("control", sl_control_open(&l->control, r, path)) ||
	    step("vhost", sl_port_vhost_folder_enter(o->nic.run_dir)) ||
	    step("privileges", sl_privileges_drop(o->uid, o->gid, sl_nic_privileges)))
		return -1;
	say("info", "event=ready nic=%s queues=%u mtu=%u uid=%u", sl_nic_name(&o->nic), r->nb_nic, r->mtu, o->uid);
	return 0;
}

/* ---- loop -------------------------------------------------------------------------------------------------------- */

static void nic_ready(struct loop *l, uint32_t queue, uint64_t now_ns)
{
	uint32_t i;

	for (i = 0; i < NIC_BURSTS_PER_TURN; i++)
		if (sl_steer_in(&l->router, l->router.nic[queue], now_ns) < SL_BURST)
			break;
	if (!l->stats_ns)
		l->stats_ns = now_ns + STATS_NS;
}

static void vm_ready(struct loop *l, uint16_t vm_id, uint64_t now_ns)
{
	const struct sl_rtr_port *c = &l->router.count.port[vm_id];
	struct sl_port *vm = l->router.vm[vm_id];
	uint32_t violations = c->violations;
	int n = vm ? sl_steer_out(&l->router, vm, now_ns) : 0;

	if (c->violations != violations && l->violation_ns <= now_ns) {
		l->violation_ns = now_ns + VIOLATION_NS;
		say("warning", "event=violation vm_id=%u reason=%s violations=%u", vm_id,
		    sl_vhost_count_name(SL_VHOST_VIOLATION_FIRST + c->violation - 1u), c->violations);
	}
	if (n >= 0)
		return;
	say("warning", "event=port-lost vm_id=%u error=\"%s\"", vm_id, strerror(-n));
	sl_count_add(&l->router.count, SL_RTR_PORT_LOST, 1);
	sl_control_port_del(&l->router, vm_id);
}

static void event_handle(struct loop *l, uint64_t what, uint64_t now_ns)
{
	uint32_t index = (uint32_t)what;

	switch ((enum sl_event_kind)(what >> 32)) {
	case SL_EVENT_SIGNAL:
		l->stop = true;
		break;
	case SL_EVENT_LISTEN:
		sl_control_accept(&l->control);
		break;
	case SL_EVENT_CONN:
		sl_control_read(&l->control, index);
		break;
	case SL_EVENT_NIC:
		nic_ready(l, index, now_ns);
		break;
	case SL_EVENT_VM:
		vm_ready(l, (uint16_t)index, now_ns);
		break;
	}
}

static void stats_read(struct loop *l)
{
	struct sl_router *r = &l->router;
	struct sl_nic_stats sum = l->stats_base, s;
	uint32_t q;

	for (q = 0; q < r->nb_nic; q++) {
		r->nic[q]->ops->stats(r->nic[q], &s);
		sum.dropped += s.dropped;
		sum.ring_full += s.ring_full;
		sum.fill_empty += s.fill_empty;
	}
	r->count.total[SL_RTR_NIC_DROPPED] = sum.dropped;
	r->count.total[SL_RTR_NIC_RING_FULL] = sum.ring_full;
	r->count.total[SL_RTR_NIC_FILL_EMPTY] = sum.fill_empty;
	l->stats_ns = 0;
}

/* What is due without an event. */
static void turn_end(struct loop *l, uint64_t now_ns)
{
	struct sl_router *r = &l->router;
	uint32_t q;

	if (r->neighs.tick_ns && r->neighs.tick_ns <= now_ns)
		sl_neighs_tick(&r->neighs, now_ns);
	if (l->stats_ns && l->stats_ns <= now_ns)
		stats_read(l);
	for (q = 0; q < r->nb_nic; q++) {
		if (r->nic[q]->unsent)
			r->nic[q]->ops->tx_burst(r->nic[q], NULL, 0);
		if (r->nic[q]->error == -ENXIO)
			l->status = -ENXIO;
	}
	l->stop |= l->status != 0;
	sl_count_commit(&r->count);
}

/* How long the loop may sleep; -1: until something happens. */
static int timeout_ms(const struct loop *l, uint64_t now_ns)
{
	const struct sl_router *r = &l->router;
	uint64_t due = r->neighs.tick_ns;
	uint32_t q;

	for (q = 0; q < r->nb_nic; q++)
		if (r->nic[q]->unsent)
			return UNSENT_RETRY_MS;
	if (l->stats_ns && (!due || l->stats_ns < due))
		due = l->stats_ns;
	if (!due)
		return -1;
	return due <= now_ns ? 0 : (int)((due - now_ns) / 1000000 + 1);
}

static void run(struct loop *l)
{
	struct epoll_event ev[EVENTS_PER_TURN];
	uint64_t now_ns = sl_now_ns();
	int i, n;

	while (!l->stop) {
		n = epoll_wait(l->router.epoll_fd, ev, EVENTS_PER_TURN, timeout_ms(l, now_ns));
		now_ns = sl_now_ns();
		for (i = 0; i < n; i++)
			event_handle(l, ev[i].data.u64, now_ns);
		turn_end(l, now_ns);
	}
}

int main(int argc, char **argv)
{
	struct options o;
	struct loop *l;

	if (options_parse(&o, argc, argv))
		return 2;
	l = calloc(1, sizeof(*l));
	if (!l || start(l, &o))
		return 1;
	run(l);
	stats_read(l);
	sl_count_commit(&l->router.count);
	if (l->status)
		say("error", "event=stopped nic=%s error=\"the interface is gone\" "
		    "hint=\"start again when it is back\"", sl_nic_name(&o.nic));
	else
		say("info", "event=stopped");
	/* the kernel takes sockets, memory and map entries back at exit */
	return l->status ? 1 : 0;
}
