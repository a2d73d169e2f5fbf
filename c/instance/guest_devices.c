/* SPDX-License-Identifier: Apache-2.0 */
/* Finding a guest's ivshmem devices, and their doorbells. */
#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "abi/ivshmem.h"
#include "base/atomic.h"
#include "base/base.h"
#include "base/log.h"
#include "instance/guest.h"

#define IOC_INFO _IOR(SL_IVSHMEM_IOC, SL_IVSHMEM_INFO, struct sl_ivshmem_info)
#define IOC_EVENTFD _IOW(SL_IVSHMEM_IOC, SL_IVSHMEM_EVENTFD, struct sl_ivshmem_eventfd)
#define DEVICES "/dev"
#define NODE "sl_ivshmem"
#define DRIVER "/sys/bus/pci/drivers/sl_ivshmem"
#define PCI "/sys/bus/pci/devices"

enum {
	PAGE_LEN = 4096,
	/* without the driver, as nobody can wake us; each wake-up under TCG is about 0.4 ms of a core */
	SLEEP_BUSY_MS = 2,
	SLEEP_IDLE_MS = 40,
	BUSY_NS = 500000000,   /* since the last work */
};

static int uevents_open(void)
{
	struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a))) {
		close(fd);
		return -1;
	}
	return fd;
}

int sl_guest_open(struct sl_guest *g)
{
	memset(g, 0, sizeof(*g));
	g->doorbell_fd = -1;
	g->driver = !access(DRIVER, F_OK);
	g->uevents = uevents_open();
	g->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	return g->uevents < 0 || g->bell < 0 ? -errno : 0;
}

void sl_guest_wait(struct sl_guest *g, int timeout_ms)
{
	struct pollfd p[] = {{.fd = g->uevents, .events = POLLIN}, {.fd = g->bell, .events = POLLIN}};
	char text[4096];

	if (poll(p, sl_nb(p), timeout_ms) <= 0)
		return;
	for (unsigned i = 0; i < sl_nb(p); i++)
		while (p[i].revents && read(p[i].fd, text, sizeof(text)) > 0)
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

/* A node of the driver: 1 if it is the doorbell, 0 if it is an edge's memory, or -errno. */
static int node_take(struct sl_guest *g, int fd, const struct sl_log *log)
{
	struct sl_ivshmem_eventfd e = {.vector = 0, .fd = g->bell};
	struct sl_ivshmem_info i;

	if (ioctl(fd, IOC_INFO, &i))
		return -errno;
	if (!i.cached && i.nb_vectors == 0)   /* a control region is too small and too seldom read to matter */
		sl_log(log, "warning", "an edge's memory is uncached; plug it while the machine runs");
	if (!i.nb_vectors)
		return 0;
	if (ioctl(fd, IOC_EVENTFD, &e))
		return -errno;
	g->vm_id = (uint16_t)i.peer_id;
	return 1;
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

/* As node_take, for a PCI device without its driver. resource2 is mapped uncached: slow, but ordered like memory, which
 * resource2_wc is not. */
static int resource_take(struct sl_guest *g, const char *name)
{
	void *regs;
	int fd;

	if (!pci_number(name, "resource", 1))   /* no table of interrupts */
		return 0;
	fd = pci_open(name, "resource0");
	if (fd < 0)
		return -errno;
	regs = mmap(NULL, PAGE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (regs == MAP_FAILED)
		return -errno;
	g->regs = regs;
	g->vm_id = (uint16_t)sl_peek_u32(&g->regs[SL_IVSHMEM_REG_POSITION / 4]);
	return 1;
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

static bool known(const struct sl_guest *g, const char *name)
{
	for (unsigned i = 0; i < g->nb_devices; i++)
		if (!strcmp(g->devices[i].name, name))
			return true;
	return false;
}

static void device_take(struct sl_guest *g, const char *name, const struct sl_log *log)
{
	struct sl_guest_device *d = &g->devices[g->nb_devices];
	int fd, kind;

	if (g->nb_devices == SL_GUEST_DEVICES_MAX || strlen(name) >= sizeof(d->name) || known(g, name))
		return;
	fd = g->driver ? node_open(name) : resource_open(name);
	if (fd < 0)
		return;
	kind = g->driver ? node_take(g, fd, log) : resource_take(g, name);
	if (kind < 0) {
		sl_log(log, "warning", "device %s: %s", name, strerror(-kind));
		close(fd);
		return;
	}
	*d = (struct sl_guest_device){.fd = fd};
	strcpy(d->name, name);
	g->nb_devices++;
	if (kind)
		g->doorbell_fd = fd;
}

void sl_guest_devices_look(struct sl_guest *g, const struct sl_log *log)
{
	DIR *dir = opendir(g->driver ? DEVICES : PCI);
	const struct dirent *e;

	while (dir && (e = readdir(dir)))
		device_take(g, e->d_name, log);
	if (dir)
		closedir(dir);
	for (unsigned i = 0; i < g->nb_devices; i++)
		if (!g->devices[i].edge_id && g->devices[i].fd != g->doorbell_fd)
			g->devices[i].edge_id = edge_id_of(g->devices[i].fd);
}

struct sl_guest_device *sl_guest_edge(struct sl_guest *g, uint32_t edge_id)
{
	for (unsigned i = 0; i < g->nb_devices; i++)
		if (g->devices[i].edge_id == edge_id)
			return &g->devices[i];
	return NULL;
}

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
	uint32_t bell = (uint32_t)vm_id << 16;   /* vector 0 */

	if (!g->regs)
		return write(g->doorbell_fd, &bell, sizeof(bell)) == sizeof(bell);
	sl_publish_u32(&g->regs[SL_IVSHMEM_REG_DOORBELL / 4], bell);
	return true;
}
