/* SPDX-License-Identifier: Apache-2.0 */
/* The instance as the first program of a virtual machine: what the sandbox, the ivshmem connection and passed
 * descriptors are to a process instance, here are the machine itself and its devices:
 *
 *   one ivshmem-doorbell device, for life     control region, own id, doorbells
 *   one ivshmem-plain device for each edge    its memory, known by the edge_id in its header
 *
 * Both come through the driver's /dev/sl_ivshmemN (abi/ivshmem.h). Where the driver can not be loaded: PCI resources in
 * sysfs, sleeps of some milliseconds in place of the own doorbell, and no notice of an unplug: then a device must not
 * be taken away before the instance is GONE.
 *
 * Devices may come at any time: a machine restored from a snapshot that had none waits here until they are plugged.
 * With a device and no assignment it is a warm instance: it publishes a heartbeat as BOOTING without a layer until it
 * is assigned one. */
#ifndef SL_GUEST_H
#define SL_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "instance/layer.h"

enum { SL_GUEST_DEVICES_MAX = SL_EDGES_MAX + 4 };   /* edges, the doorbell, and some that are plugged and not ours (yet) */

struct sl_guest_device {
	int fd;                 /* its memory: mmap, lseek */
	char name[32];          /* of its node, or its PCI address */
	uint32_t edge_id;       /* 0: the doorbell, or an edge not formatted yet */
	struct sl_watch watch;  /* tells that it is gone */
};

struct sl_guest {
	bool driver;            /* loaded */
	int uevents;
	int bell;               /* own doorbell */
	int doorbell_fd;        /* the doorbell device, -1: not plugged yet */
	uint32_t *regs;         /* without the driver: its registers */
	uint64_t requests;      /* without the driver: as last seen, and until when to look often */
	uint64_t busy_until_ns;
	uint16_t vm_id;         /* as the doorbell device knows it */
	struct sl_guest_device devices[SL_GUEST_DEVICES_MAX];
	unsigned nb_devices;
};

/* Everything: mounts, modules, the instance as a child, and the end of the machine when that ends. Call it as pid 1,
 * with no threads. Does not return, unless the machine can not even be switched off. */
int sl_guest_main(void);

/* --- guest_devices.c --- */

int sl_guest_open(struct sl_guest *g);
/* Waits until something was plugged or somebody rang, at most timeout_ms; -1: for ever. */
void sl_guest_wait(struct sl_guest *g, int timeout_ms);
/* Opens what has come since the last look. */
void sl_guest_devices_look(struct sl_guest *g, const struct sl_log *log);
/* The device with the memory of that edge, or NULL: none yet. */
struct sl_guest_device *sl_guest_edge(struct sl_guest *g, uint32_t edge_id);
/* How long the loop may sleep: shorter where nobody can wake it. */
int sl_guest_sleep_ms(struct sl_guest *g, const struct sl_instance *inst, int timeout_ms);
/* Rings a peer's doorbell; true if the device took it. */
bool sl_guest_ring(const struct sl_guest *g, uint16_t vm_id);

#endif
