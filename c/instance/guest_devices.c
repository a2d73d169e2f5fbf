/* SPDX-License-Identifier: Apache-2.0 */
/* Finding a guest's ivshmem devices. A device that is open already, here or in the instance, is somebody's: the driver lets
 * nobody else open it. */
#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/log.h"
#include "instance/guest.h"

#define IOC_INFO _IOR(SL_IVSHMEM_IOC, SL_IVSHMEM_INFO, struct sl_ivshmem_info)
#define DEVICES "/dev"
#define NODE "sl_ivshmem"
#define DRIVER "/sys/bus/pci/drivers/sl_ivshmem"
#define PCI "/sys/bus/pci/devices"

enum { PAGE_LEN = 4096 };

bool sl_guest_driver(void)
{
	return !access(DRIVER, F_OK);
}

int sl_guest_uevents_open(void)
{
	struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a))) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd < 0 ? -errno : fd;
}

void sl_guest_uevents_wait(int uevents, int timeout_ms)
{
	struct pollfd p = {.fd = uevents, .events = POLLIN};
	char text[4096];

	if (poll(&p, 1, timeout_ms) > 0)
		while (read(uevents, text, sizeof(text)) > 0)
			;
}

static uint32_t edge_id_of(int fd)
{
	const struct sl_region *region = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uint32_t id = 0;

	if (region == MAP_FAILED)
		return 0;
	if (sl_observe_u32(&region->magic) == SL_REGION_MAGIC)
		id = sl_peek_u32(&region->edge_id);
	munmap((void *)(uintptr_t)region, PAGE_LEN);
	return id;
}

static uint64_t pci_number(const char *name, const char *file, int line)
{
	char path[300], text[256];
	uint64_t value = 0;
	FILE *f;

	snprintf(path, sizeof(path), PCI "/%s/%s", name, file);
	f = fopen(path, "re");
	for (; f && line >= 0 && fgets(text, sizeof(text), f); line--)
		value = line ? 0 : strtoull(text, NULL, 16);
	if (f)
		fclose(f);
	return value;
}

static int pci_open(const char *name, const char *file)
{
	char path[300];

	snprintf(path, sizeof(path), PCI "/%s/%s", name, file);
	return open(path, O_RDWR | O_CLOEXEC);
}

static int resource_open(const char *name)
{
	int fd;

	if (pci_number(name, "vendor", 0) != SL_IVSHMEM_VENDOR || pci_number(name, "device", 0) != SL_IVSHMEM_DEVICE)
		return -1;
	fd = pci_open(name, "enable");
	if (fd < 0)
		return -1;
	if (write(fd, "1", 1) != 1) {
		close(fd);
		return -1;
	}
	close(fd);
	return pci_open(name, "resource2");
}

static int node_open(const char *name)
{
	char path[300];

	if (strncmp(name, NODE, strlen(NODE)))
		return -1;
	snprintf(path, sizeof(path), DEVICES "/%s", name);
	return open(path, O_RDWR | O_CLOEXEC);
}

/* --- the doorbell --- */

static int node_doorbell(int fd, struct sl_guest_doorbell *d)
{
	struct sl_ivshmem_info i;

	if (ioctl(fd, IOC_INFO, &i))
		return -errno;
	if (!i.nb_vectors)
		return -EAGAIN;
	*d = (struct sl_guest_doorbell){.memory = fd, .regs = -1, .vm_id = (uint16_t)i.peer_id};
	return 0;
}

static int resource_doorbell(const char *name, int fd, struct sl_guest_doorbell *d)
{
	const uint32_t *regs;

	if (!pci_number(name, "resource", 1))   /* no table of interrupts */
		return -EAGAIN;
	*d = (struct sl_guest_doorbell){.memory = fd, .regs = pci_open(name, "resource0")};
	if (d->regs < 0)
		return -errno;
	regs = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, d->regs, 0);
	if (regs == MAP_FAILED)
		return -errno;
	d->vm_id = (uint16_t)sl_peek_u32(&regs[SL_IVSHMEM_REG_POSITION / 4]);
	munmap((void *)(uintptr_t)regs, PAGE_LEN);
	return 0;
}

/* --- the search --- */

/* Calls found with each device that can be opened, until it returns anything but -EAGAIN; it then has taken the
 * descriptor over. */
static int devices_try(int (*found)(const char *name, int fd, void *arg), void *arg, const struct sl_log *log)
{
	bool driver = sl_guest_driver();
	DIR *dir = opendir(driver ? DEVICES : PCI);
	const struct dirent *e;
	int err = -EAGAIN;

	while (err == -EAGAIN && dir && (e = readdir(dir))) {
		int fd = driver ? node_open(e->d_name) : resource_open(e->d_name);

		if (fd < 0)
			continue;
		err = found(e->d_name, fd, arg);
		if (err == -EAGAIN)
			close(fd);
		else if (err < 0)
			sl_log(log, "warning", "device %s: %s", e->d_name, strerror(-err));
	}
	if (dir)
		closedir(dir);
	return err;
}

static int doorbell_found(const char *name, int fd, void *arg)
{
	return sl_guest_driver() ? node_doorbell(fd, arg) : resource_doorbell(name, fd, arg);
}

int sl_guest_doorbell_open(struct sl_guest_doorbell *d, const struct sl_log *log)
{
	return devices_try(doorbell_found, d, log);
}

struct edge_search {
	uint32_t edge_id;
	const struct sl_log *log;
};

static int edge_found(const char *name, int fd, void *arg)
{
	const struct edge_search *s = arg;
	struct sl_ivshmem_info i;

	if (!sl_guest_driver() && pci_number(name, "resource", 1))   /* the doorbell */
		return -EAGAIN;
	if (edge_id_of(fd) != s->edge_id)
		return -EAGAIN;
	if (sl_guest_driver() && !ioctl(fd, IOC_INFO, &i) && !i.cached)
		sl_log(s->log, "warning", "the memory of edge %#x is uncached; plug it while the machine runs", s->edge_id);
	return fd;
}

int sl_guest_edge_open(uint32_t edge_id, const struct sl_log *log)
{
	struct edge_search s = {edge_id, log};

	return devices_try(edge_found, &s, log);
}
