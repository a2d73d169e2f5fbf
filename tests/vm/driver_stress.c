/* SPDX-License-Identifier: Apache-2.0 */
/* In place of /init: opens, maps, touches, rings and polls every ivshmem device that there is, from several processes and as fast as
 * possible, while the host plugs and unplugs them. Says each second what it saw. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi/ivshmem.h"

#define IOC_INFO _IOR(SL_IVSHMEM_IOC, SL_IVSHMEM_INFO, struct sl_ivshmem_info)
#define IOC_EVENTFD _IOW(SL_IVSHMEM_IOC, SL_IVSHMEM_EVENTFD, struct sl_ivshmem_eventfd)

enum { NB_WORKERS = 3 };

struct seen {
	unsigned opened, busy, bus_error, hung_up, stale, unmapped;
};

static sigjmp_buf after_fault;

static void bus_error(int number)
{
	siglongjmp(after_fault, number);
}

static void modules_load(void)
{
	struct dirent **list;
	int n = scandir("/modules", &list, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char path[300];
		int fd;

		snprintf(path, sizeof(path), "/modules/%s", list[i]->d_name);
		fd = open(path, O_RDONLY);
		if (fd >= 0 && list[i]->d_name[0] != '.')
			syscall(SYS_finit_module, fd, "", 0);
		close(fd);
	}
}

/* Every page, until the device is gone or some rounds are done. The id of the edge may never change: that would be
 * the memory of another device. */
static void touch(int fd, volatile unsigned *memory, size_t len, struct seen *s)
{
	unsigned mine = memory[2];   /* edge_id, see abi/edge.h */
	struct rusage before, now;

	getrusage(RUSAGE_SELF, &before);
	for (int round = 0; round < 20; round++) {
		unsigned bell = 9u << 16;
		struct pollfd p = {.fd = fd};

		for (size_t at = 4096; at < len; at += 4096)
			memory[at / 4] += 1;
		getrusage(RUSAGE_SELF, &now);
		if (!round)
			printf("touched %zu pages with %ld faults\n", len / 4096, now.ru_minflt - before.ru_minflt);
		if (memory[2] != mine)
			s->stale++;
		if (write(fd, &bell, sizeof(bell)) < 0 && errno == ENODEV && poll(&p, 1, 0) == 1 && p.revents & POLLHUP) {
			s->hung_up++;
			return;
		}
	}
}

static void device_use(const char *name, struct seen *s)
{
	struct sl_ivshmem_eventfd e = {.fd = eventfd(0, 0)};
	struct sl_ivshmem_info info = {0};
	char path[300];
	void *memory;
	int fd;

	snprintf(path, sizeof(path), "/dev/%s", name);
	fd = open(path, O_RDWR);
	if (fd < 0) {
		s->busy += errno == EBUSY;
		close(e.fd);
		return;
	}
	s->opened++;
	if (!ioctl(fd, IOC_INFO, &info))
		ioctl(fd, IOC_EVENTFD, &e);
	memory = mmap(NULL, lseek(fd, 0, SEEK_END), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory != MAP_FAILED) {
		size_t len = (size_t)lseek(fd, 0, SEEK_END);

		if (sigsetjmp(after_fault, 1))
			s->bus_error++;
		else
			touch(fd, memory, len, s);
		munmap(memory, len);
	} else {
		s->unmapped++;   /* no mmap: it was gone between open and lseek */
	}
	close(e.fd);
	close(fd);
}

static void worker(int number)
{
	struct seen s = {0};
	time_t said = 0;

	signal(SIGBUS, bus_error);
	for (;;) {
		struct dirent *e;
		DIR *d = opendir("/dev");

		while (d && (e = readdir(d)))
			if (!strncmp(e->d_name, "sl_ivshmem", 10))
				device_use(e->d_name, &s);
		closedir(d);
		if (time(NULL) != said)
			printf("worker %d: opened %u busy %u bus_error %u hung_up %u stale %u unmapped %u\n", number, s.opened, s.busy,
			       s.bus_error, s.hung_up, s.stale, s.unmapped);
		said = time(NULL);
	}
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	modules_load();
	for (int i = 0; i < NB_WORKERS; i++)
		if (!fork())
			worker(i);
	printf("stress begins\n");
	for (;;)
		pause();
}
