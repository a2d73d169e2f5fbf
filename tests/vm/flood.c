/* SPDX-License-Identifier: Apache-2.0 */
/* In place of /init, a guest that has been broken into: it writes into the registers of every ivshmem device that it finds, all the
 * time. First wild values, of every width, into every register; then it rings every peer there can be, by every vector, and the few that
 * there surely are as fast as it can. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "abi/ivshmem.h"

#define PCI "/sys/bus/pci/devices"

enum { DEVICES_MAX = 8, REGS_LEN = 256, PEERS = 256, FEW = 8, VECTORS = 4, WILD = 20000, ROUNDS = 200, RINGS = 200000 };

static unsigned long number(const char *device, const char *file)
{
	char path[300], text[32] = "";
	FILE *f;

	snprintf(path, sizeof(path), PCI "/%s/%s", device, file);
	f = fopen(path, "r");
	if (f && !fgets(text, sizeof(text), f))
		text[0] = 0;
	if (f)
		fclose(f);
	return strtoul(text, NULL, 16);
}

/* Their registers, of the first so many. */
static unsigned devices_open(volatile uint8_t **regs)
{
	struct dirent *e;
	DIR *d = opendir(PCI);
	unsigned nb = 0;

	while (d && nb < DEVICES_MAX && (e = readdir(d))) {
		char path[300];
		void *p;
		int fd;

		if (number(e->d_name, "vendor") != SL_IVSHMEM_VENDOR || number(e->d_name, "device") != SL_IVSHMEM_DEVICE)
			continue;
		snprintf(path, sizeof(path), PCI "/%s/enable", e->d_name);
		fd = open(path, O_WRONLY);
		if (write(fd, "1", 1) != 1)
			continue;
		close(fd);
		snprintf(path, sizeof(path), PCI "/%s/resource0", e->d_name);
		fd = open(path, O_RDWR);
		p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
		if (p != MAP_FAILED)
			regs[nb++] = p;
	}
	closedir(d);
	return nb;
}

static void wild(volatile uint8_t *regs)
{
	for (unsigned i = 0; i < WILD; i++) {
		unsigned at = (unsigned)random() % REGS_LEN;
		uint32_t value = (uint32_t)random() * 2654435761u;

		switch (random() % 4) {
		case 0:
			regs[at] = (uint8_t)value;
			break;
		case 1:
			*(volatile uint16_t *)(regs + (at & ~1u)) = (uint16_t)value;
			break;
		case 2:
			*(volatile uint32_t *)(regs + (at & ~3u)) = value;
			break;
		default:
			*(volatile uint32_t *)(regs + SL_IVSHMEM_REG_DOORBELL) = value;
		}
	}
}

static void ring_all(volatile uint8_t *regs)
{
	for (uint32_t peer = 0; peer < PEERS; peer++)
		for (uint32_t vector = 0; vector < VECTORS; vector++)
			*(volatile uint32_t *)(regs + SL_IVSHMEM_REG_DOORBELL) = peer << 16 | vector;
}

static void ring_few(volatile uint8_t *regs)
{
	for (uint32_t n = 0; n < RINGS; n++)
		*(volatile uint32_t *)(regs + SL_IVSHMEM_REG_DOORBELL) = n % FEW << 16;
}

int main(void)
{
	volatile uint8_t *regs[DEVICES_MAX];
	unsigned said = 0;

	mkdir("/sys", 0755);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	printf("{\"event\":\"booted\"}\n");
	fflush(stdout);
	for (;;) {
		unsigned nb = devices_open(regs);

		if (nb != said)
			printf("registers of %u devices\n", said = nb);
		fflush(stdout);
		for (unsigned i = 0; i < nb; i++)
			wild(regs[i]);
		for (unsigned round = 0; round < ROUNDS; round++)
			for (unsigned i = 0; i < nb; i++)
				ring_all(regs[i]);
		for (unsigned i = 0; i < nb; i++)
			ring_few(regs[i]);
		for (unsigned i = 0; i < nb; i++)
			munmap((void *)(uintptr_t)regs[i], 4096);
		if (!nb)
			usleep(10000);
	}
}
