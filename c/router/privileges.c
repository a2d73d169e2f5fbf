/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/if_tun.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "abi/base.h"
#include "router/privileges.h"

enum {
	FDS_BESIDE_PORTS = 128,
	FDS_PER_PORT = 64,        /* a vhost-user port with all its rings: sockets, timer, three eventfds for each ring */
};

static int limits_set(void)
{
	static const struct { int what; rlim_t max; } limits[] = {
		{ RLIMIT_NOFILE, SL_VM_MAX * FDS_PER_PORT + FDS_BESIDE_PORTS }, { RLIMIT_CORE, 0 }, { RLIMIT_MSGQUEUE, 0 },
		{ RLIMIT_MEMLOCK, 0 },
	};
	size_t i;

	for (i = 0; i < sl_nb(limits); i++) {
		struct rlimit l;

		/* not even root may raise it everywhere */
		if (getrlimit((__rlimit_resource_t)limits[i].what, &l))
			return -errno;
		l.rlim_cur = l.rlim_max = sl_min(l.rlim_max, limits[i].max);
		if (setrlimit((__rlimit_resource_t)limits[i].what, &l))
			return -errno;
	}
	return 0;
}

static int identity_drop(uid_t uid, gid_t gid)
{
	struct rlimit no_children = { 0, 0 };
	int cap;

	if (uid == 0)
		return -EINVAL;
	for (cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap))
			return -errno;
	/* leaving uid 0 clears the permitted, effective and ambient sets */
	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	if (setrlimit(RLIMIT_NPROC, &no_children) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return setuid(0) ? 0 : -EPERM;
}

/* What the tested drivers of DPDK and the classifier in user space call beyond the rest. */
static int library_allow(scmp_filter_ctx ctx)
{
	static const int plain[] = {
		SCMP_SYS(readv), SCMP_SYS(recvfrom), SCMP_SYS(sendmsg), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(futex),
		SCMP_SYS(nanosleep), SCMP_SYS(clock_nanosleep), SCMP_SYS(sched_yield),
		SCMP_SYS(gettid), SCMP_SYS(madvise), SCMP_SYS(exit),
	};
	/* on maps that are open already: services are read again, counters written */
	static const int bpf[] = { BPF_MAP_LOOKUP_BATCH, BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET_INFO_BY_FD };
	int err = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
	size_t i;

	for (i = 0; !err && i < sl_nb(plain); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, plain[i], 0);
	for (i = 0; !err && i < sl_nb(bpf); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(bpf), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)bpf[i]));
	return err;
}

static int syscalls_limit(enum sl_privileges_kind kind)
{
	bool is_own = kind == SL_PRIVILEGES_OWN;
	static const int plain[] = {
		SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(sendto), SCMP_SYS(recvmsg),
		SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_ctl), SCMP_SYS(accept4), SCMP_SYS(close),
		SCMP_SYS(getsockopt), SCMP_SYS(clock_gettime), SCMP_SYS(getpid), SCMP_SYS(brk), SCMP_SYS(munmap),
		SCMP_SYS(rt_sigreturn), SCMP_SYS(restart_syscall), SCMP_SYS(exit_group),
		/* a vhost-user port: its own events, the peer's descriptors and memory */
		SCMP_SYS(epoll_create1), SCMP_SYS(eventfd2), SCMP_SYS(timerfd_create), SCMP_SYS(timerfd_settime),
		SCMP_SYS(connect), SCMP_SYS(shutdown), SCMP_SYS(preadv2), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(io_submit),
		SCMP_SYS(io_getevents),
	};
	static const int fcntls[] = { F_GETFL, F_SETFL, F_GET_SEALS };
	scmp_filter_ctx ctx = seccomp_init(is_own ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_ERRNO(EPERM));
	int err = ctx ? 0 : -ENOMEM;
	size_t i;

	for (i = 0; !err && i < sl_nb(plain); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, plain[i], 0);
	/* a new port: made non-blocking, asked for its kind, its memory allocated, its socket connected */
	for (i = 0; !err && i < sl_nb(fcntls); i++)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, (uint64_t)fcntls[i]));
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 2, SCMP_A1(SCMP_CMP_EQ, SOL_SOCKET),
				       SCMP_A2(SCMP_CMP_EQ, SO_LINGER));
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, TUNGETIFF));
	if (!err)
		err = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				       SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (!err && !is_own)
		err = library_allow(ctx);
	if (!err)
		err = seccomp_load(ctx);
	seccomp_release(ctx);
	return err;
}

int sl_privileges_drop(uid_t uid, gid_t gid, enum sl_privileges_kind kind)
{
	int err = limits_set();

	if (!err)
		err = identity_drop(uid, gid);
	return err ? err : syscalls_limit(kind);
}
