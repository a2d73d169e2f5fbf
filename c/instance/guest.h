/* SPDX-License-Identifier: Apache-2.0 */
/* The instance in a virtual machine. What the manager and the holder are to a process instance, here are devices and the
 * guest's first process:
 *
 *   one ivshmem-doorbell device, for life     control region, own id, doorbells
 *   one ivshmem-plain device for each edge    its memory, known by the edge_id in its header
 *   a network interface, for tcp              eth0
 *
 * The first process makes the machine usable, starts the instance behind the same walls as anywhere, and hands it what it
 * asks for: devices opened, eth0 set up with its listening sockets, the app's folder. Devices come through the driver's
 * /dev/sl_ivshmemN (abi/ivshmem.h). Where the driver can not be loaded: PCI resources in sysfs, sleeps of some
 * milliseconds in place of the own doorbell, and no notice of an unplug: then a device must not be taken away before the
 * instance has let go of it (assignment_seen).
 *
 * Devices may come at any time: a machine restored from a snapshot that had none waits here until they are plugged. All
 * that takes time is done before that: the instance has its layers loaded and its walls closed. */
#ifndef SL_GUEST_H
#define SL_GUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "abi/ivshmem.h"
#include "base/log.h"
#include "instance/layer.h"

struct sl_runner;

#define SL_GUEST_IOC_EVENTFD _IOW(SL_IVSHMEM_IOC, SL_IVSHMEM_EVENTFD, struct sl_ivshmem_eventfd)

enum { SL_GUEST_EDGES_TIMEOUT_MS = 10000 };

/* What the first process opens, and the instance needs for its life */
struct sl_guest_doorbell {
	int memory;             /* the control region */
	int regs;               /* without the driver: its registers; else -1 */
	uint16_t vm_id;
};

/* On the instance's side */
struct sl_guest {
	bool driver;            /* loaded: /dev/sl_ivshmemN */
	struct sl_guest_doorbell doorbell;
	uint32_t *regs;         /* without the driver */
	uint64_t requests;      /* without the driver: as last seen, and until when to look often */
	uint64_t busy_until_ns;
	struct sl_watch edges[SL_EDGES_MAX];   /* tell that the device is gone; fd -1: no edge */
};

/* guest.c: the first process */
/* Everything: mounts, modules, the instance as a child, and the end of the machine when that ends. Call it as pid 1,
 * with no threads. accelerator: a device of software (see sl_accelerator_load), or NULL. Does not return, unless the
 * machine can not even be switched off. */
int sl_guest_main(const char *accelerator);

/* guest_devices.c: the first process */
/* Whether the driver was loaded. */
bool sl_guest_driver(void);
/* A socket that tells of devices that come and go, or -errno. */
int sl_guest_uevents_open(void);
/* Waits until a device came or went, at most timeout_ms; -1: for ever. */
void sl_guest_uevents_wait(int uevents, int timeout_ms);
/* The doorbell device. 0, -EAGAIN: none yet, or -errno. */
int sl_guest_doorbell_open(struct sl_guest_doorbell *d, const struct sl_log *log);
/* The device with the memory of that edge: a descriptor, or -EAGAIN: none yet. */
int sl_guest_edge_open(uint32_t edge_id, const struct sl_log *log);

/* guest_accelerator.c: the instance */
/* From now on a thread, which keeps its rights, has tls use accelerators that come, and lets go of those that leave.
 * False: this machine's image is not made for that, or it can not; there is no thread then. */
bool sl_guest_accelerators_follow(struct sl_runner *r);

/* guest_instance.c: the instance */
/* Runs the instance until its end; sock is its socket of grants. Exit status. */
int sl_guest_instance(int sock, const char *accelerator);
/* Tells the first process that there is another assignment. */
void sl_guest_ask(struct sl_runner *r);
/* Keeps an edge's descriptor, so that its unplug is noticed; closes it. */
int sl_guest_edge_watch(struct sl_runner *r, unsigned n, int fd);
void sl_guest_edge_forget(struct sl_runner *r, unsigned n);
/* How long the loop may sleep: shorter where nobody can wake it. */
int sl_guest_sleep_ms(struct sl_guest *g, const struct sl_instance *inst, int timeout_ms);
/* The own doorbell of that number adds to the eventfd from now on; -1: it is masked. 0 or -errno. */
int sl_guest_bell_bind(const struct sl_guest *g, unsigned number, int fd);
/* Rings a peer's doorbell; true if the device took it. */
bool sl_guest_ring(const struct sl_guest *g, uint16_t vm_id);

#endif
