/* SPDX-License-Identifier: Apache-2.0 */
/* The walls around a process instance. They close before it has a layer, and stay as they are when it gets another: all
 * that a layer needs comes as descriptors (SL_GRANT_* in abi/control.h).
 *
 * A filter of system calls can be narrowed and never widened, so there is one for all: what any layer needs. The union is
 * harmless because of what is missing: no socket, no open but below a folder that was granted (and its own root is empty), no
 * process, no executable memory, no capability. accept4 needs a listening socket, which only tcp is given. */
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "instance/guest.h"
#include "instance/instance.h"

static int text_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		err = -errno;
	close(fd);
	return err;
}

static int user_become(unsigned uid, unsigned gid)
{
	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	/* the change of user made /proc/self unwritable for us; the maps below need it */
	return prctl(PR_SET_DUMPABLE, 1) ? -errno : 0;
}

/* Root of the new user namespace is nobody outside of it. */
static int user_map(unsigned uid, unsigned gid)
{
	char map[32];
	int err;

	if (unshare(CLONE_NEWUSER))
		return -errno;
	err = text_write("/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "0 %u 1", gid);
	err = err ? err : text_write("/proc/self/gid_map", map);
	snprintf(map, sizeof(map), "0 %u 1", uid);
	err = err ? err : text_write("/proc/self/uid_map", map);
	if (!err && (setresgid(0, 0, 0) || setresuid(0, 0, 0)))
		err = -errno;
	return err;
}

/* The first process of the new pid namespace goes on; its parent says its pid and ends. */
static int pid_one_become(int pid_fd)
{
	char text[16];
	pid_t pid = fork();
	int n;

	if (pid < 0)
		return -errno;
	if (!pid) {
		close(pid_fd);
		return 0;
	}
	n = snprintf(text, sizeof(text), "%d\n", (int)pid);
	_exit(write(pid_fd, text, (size_t)n) == n ? 0 : 1);
}

int sl_sandbox_enter(const struct sl_sandbox *s)
{
	int err = user_become(s->uid, s->gid);

	err = err ? err : user_map(s->uid, s->gid);
	if (!err && unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS))
		err = -errno;
	return err ? err : pid_one_become(s->pid_fd);
}

/* An empty read-only tmpfs becomes the root; the host's tree is detached. */
static int root_empty(void)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k") ||
	    chdir("/tmp") || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/") ||
	    mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return -errno;
	return 0;
}

static int limits_set(void)
{
	static const struct {
		int what;
		rlim_t value;
	} limits[] = {
		{RLIMIT_CORE, 0},          /* a core dump would hold keys */
		{RLIMIT_FSIZE, 1 << 20},   /* the log */
		{RLIMIT_NPROC, 1},
		{RLIMIT_MSGQUEUE, 0},
		{RLIMIT_NOFILE, 65536},
	};

	for (unsigned i = 0; i < sl_nb(limits); i++) {
		struct rlimit now, want;

		if (getrlimit((__rlimit_resource_t)limits[i].what, &now))
			return -errno;
		want.rlim_cur = want.rlim_max = sl_min(limits[i].value, now.rlim_max);
		if (setrlimit((__rlimit_resource_t)limits[i].what, &want))
			return -errno;
	}
	return 0;
}

static int caps_drop(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};

	for (int c = 0; prctl(PR_CAPBSET_READ, c) >= 0; c++)
		if (prctl(PR_CAPBSET_DROP, c))
			return -errno;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) || syscall(SYS_capset, &head, none))
		return -errno;
	return 0;
}

/* What the loop, the edges (to look at and map the memory they are granted), the C library's allocator and its exit need */
static const int base_syscalls[] = {
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(close), SCMP_SYS(recvmsg), SCMP_SYS(epoll_wait), SCMP_SYS(epoll_ctl),
	SCMP_SYS(epoll_pwait), SCMP_SYS(poll), SCMP_SYS(clock_gettime), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(brk),
	SCMP_SYS(getpid), SCMP_SYS(getrandom), SCMP_SYS(futex), SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn),
	SCMP_SYS(rt_sigprocmask), SCMP_SYS(restart_syscall), SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(lseek), -1,
};

static int list_allow(scmp_filter_ctx f, const int *list)
{
	for (; list && *list != -1; list++) {
		int err = seccomp_rule_add(f, SCMP_ACT_ALLOW, *list, 0);

		if (err && err != -EEXIST)
			return err;
	}
	return 0;
}

static int layers_allow(scmp_filter_ctx f)
{
	int err = 0;

	for (unsigned i = 0; !err && sl_layers[i]; i++)
		err = list_allow(f, sl_layers[i]->syscalls);
	return err;
}

static int syscalls_close(bool guest, bool whole)
{
	/* a write outside the list is an attack or a bug: the process ends, its peers go on */
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int err;

	if (!f)
		return -ENOMEM;
	err = seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, whole);   /* a library may have made threads */
	err = err ? err : list_allow(f, base_syscalls);
	err = err ? err : layers_allow(f);
	err = err ? err : seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, F_GET_SEALS));
	/* memory may be had, but never memory that can be executed */
	err = err ? err : seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	err = err ? err : seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/* what an allocator gives back; MADV_REMOVE would punch holes into an edge that others have mapped */
	err = err ? err : seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(madvise), 1, SCMP_A2(SCMP_CMP_EQ, MADV_DONTNEED));
	err = err ? err : seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(madvise), 1, SCMP_A2(SCMP_CMP_EQ, MADV_FREE));
	if (!err && guest)   /* a doorbell that rings without end is masked */
		err = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1(SCMP_CMP_EQ, SL_GUEST_IOC_EVENTFD));
	err = err ? err : seccomp_load(f);
	seccomp_release(f);
	return err;
}

/* A guest's first root can not be left by pivot_root(2); it is covered instead. */
static int root_cover(void)
{
	if (mount("none", "/mnt", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k") || chdir("/mnt") ||
	    mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ||
	    mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return -errno;
	return 0;
}

static int rights_close(bool guest, bool whole)
{
	int err = limits_set();

	err = err ? err : caps_drop();
	if (!err && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0)))
		err = -errno;
	return err ? err : syscalls_close(guest, whole);
}

int sl_sandbox_close(void)
{
	int err = root_empty();

	return err ? err : rights_close(false, true);
}

int sl_sandbox_close_guest(bool whole)
{
	int err = root_cover();

	return err ? err : rights_close(true, whole);
}
