/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* What the guest driver (vm-images/driver) offers on /dev/sl_ivshmemN, one node for each ivshmem device of the guest.
 *
 *   open        one opener at a time: -EBUSY. A fork or a passed descriptor shares it
 *   mmap        MAP_SHARED, read and write: the device's shared memory, cached where the platform allows. SIGBUS once the device is gone
 *   lseek       SEEK_END tells the length, as on a file
 *   write       one __u32, peer id << 16 | vector: rings that peer. -ENODEV once the device is gone
 *   ioctl       _IOR(SL_IVSHMEM_IOC, SL_IVSHMEM_INFO, struct sl_ivshmem_info)
 *               _IOW(SL_IVSHMEM_IOC, SL_IVSHMEM_EVENTFD, struct sl_ivshmem_eventfd)
 *   poll        EPOLLHUP once the device is gone */
#ifndef SL_ABI_IVSHMEM_H
#define SL_ABI_IVSHMEM_H

#include <linux/types.h>

enum {
	SL_IVSHMEM_IOC = 0x73,       /* 's' */
	SL_IVSHMEM_INFO = 0x70,
	SL_IVSHMEM_EVENTFD = 0x71,
	SL_IVSHMEM_VECTORS_MAX = 32,
	SL_IVSHMEM_VENDOR = 0x1af4,  /* of the PCI device, by QEMU's docs/specs/ivshmem-spec.rst */
	SL_IVSHMEM_DEVICE = 0x1110,
	SL_IVSHMEM_BAR_REGS = 0,
	SL_IVSHMEM_BAR_MEMORY = 2,
	SL_IVSHMEM_REG_POSITION = 8, /* bytes from the start of the registers */
	SL_IVSHMEM_REG_DOORBELL = 12,
};

struct sl_ivshmem_info {
	__u32 peer_id;     /* own id as the server gave it. Read it anew after a restore */
	__u32 nb_vectors;  /* 0: ivshmem-plain */
	__u64 len;         /* bytes of shared memory */
	__u32 cached;      /* 1: write-back; 0: the platform made it uncached, which is slow on some processors */
	__u32 pad;
};
_Static_assert(sizeof(struct sl_ivshmem_info) == 24, "no implicit padding");

/* Each interrupt of the vector adds 1 to the eventfd; fd -1 unbinds. Without one the vector is masked: interrupts cost nothing,
 * and those that came are one when it is bound again. */
struct sl_ivshmem_eventfd {
	__u32 vector;
	__s32 fd;
};
_Static_assert(sizeof(struct sl_ivshmem_eventfd) == 8, "no implicit padding");

#endif
