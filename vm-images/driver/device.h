/* SPDX-License-Identifier: GPL-2.0 */
/* One ivshmem device, and its vectors: the doorbells that others ring. */
#ifndef SL_DEVICE_H
#define SL_DEVICE_H

#include <linux/eventfd.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/pci.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "abi/ivshmem.h"

struct sliv;

struct sliv_vector {
	struct sliv *d;
	struct eventfd_ctx *ev;		/* NULL: it is masked. Under d->evlock, and written with d->lock held for writing */
	int irq;			/* 0: not requested */
};

struct sliv {
	struct miscdevice misc;
	struct kref ref;
	int number;			/* N of the node's name */
	char name[24];
	struct rw_semaphore lock;
	bool gone;
	bool opened;
	struct address_space *mapping;	/* of the opener's inode */
	void __iomem *regs;
	phys_addr_t base;
	struct sl_ivshmem_info info;
	wait_queue_head_t wq;
	spinlock_t evlock;
	struct sliv_vector vectors[SL_IVSHMEM_VECTORS_MAX];
};

/* All masked. 0 or -errno. */
int vectors_init(struct pci_dev *pdev, struct sliv *d);
/* Afterwards no handler runs and none will. */
void vectors_free(struct pci_dev *pdev, struct sliv *d);
/* What the ioctl SL_IVSHMEM_EVENTFD does. */
long vector_set(struct sliv *d, const struct sl_ivshmem_eventfd __user *from);
/* With d->lock held for writing. */
void vectors_unbind(struct sliv *d);

#endif
