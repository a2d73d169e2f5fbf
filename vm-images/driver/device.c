// SPDX-License-Identifier: GPL-2.0
/* QEMU's ivshmem-plain and ivshmem-doorbell for a user-space program of the guest. The interface is abi/ivshmem.h.
 *
 * Why a driver: the kernel's sysfs mapping is uncached, has no interrupt, and after an unplug shows whatever is plugged next
 * at the same address. Here the mapping is write-back, of 2 MiB entries where aligned, and is revoked.
 *
 * Who may touch what, when the device can go at any time:
 *   open     runs under the misc core's mutex, which misc_deregister() takes too: no open begins or goes on after it returned
 *   regs     only with lock held for reading and !gone; remove() sets gone with lock held for writing
 *   mapping  a fault inserts with lock held for reading and !gone; remove() sets gone, then zaps, with lock held for writing,
 *            so no entry can be inserted behind the zap
 *   memory   of struct sliv: one reference of the device, one of the opener
 *
 * For Linux 6.1. Later kernels changed huge_fault (order), eventfd_signal (no count) and vm_flags (vm_flags_set). */
#include <linux/mm.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pfn_t.h>
#include <linux/poll.h>
#include <asm/memtype.h>

#include "device.h"
#include "lines.h"

#define IOC_INFO _IOR(SL_IVSHMEM_IOC, SL_IVSHMEM_INFO, struct sl_ivshmem_info)
#define IOC_EVENTFD _IOW(SL_IVSHMEM_IOC, SL_IVSHMEM_EVENTFD, struct sl_ivshmem_eventfd)

static DEFINE_IDA(numbers);

static void sliv_free(struct kref *k)
{
	struct sliv *d = container_of(k, struct sliv, ref);

	ida_free(&numbers, d->number);
	kfree(d);
}

/* --- doorbells --- */

static ssize_t sliv_write(struct file *f, const char __user *buf, size_t len, loff_t *pos)
{
	struct sliv *d = f->private_data;
	ssize_t r = -ENODEV;
	u32 bell;

	if (len != sizeof(bell))
		return -EINVAL;
	if (copy_from_user(&bell, buf, sizeof(bell)))
		return -EFAULT;
	down_read(&d->lock);
	if (!d->gone) {
		/* writel() lets no earlier store to the shared memory pass it */
		writel(bell, d->regs + SL_IVSHMEM_REG_DOORBELL);
		r = sizeof(bell);
	}
	up_read(&d->lock);
	return r;
}

static long info_get(struct sliv *d, struct sl_ivshmem_info __user *to)
{
	struct sl_ivshmem_info i = d->info;
	bool gone;

	down_read(&d->lock);
	gone = d->gone;
	if (!gone)
		i.peer_id = readl(d->regs + SL_IVSHMEM_REG_POSITION);
	up_read(&d->lock);
	if (gone)
		return -ENODEV;
	return copy_to_user(to, &i, sizeof(i)) ? -EFAULT : 0;
}

static long sliv_ioctl(struct file *f, unsigned int cmd, unsigned long arg)
{
	switch (cmd) {
	case IOC_INFO: return info_get(f->private_data, (void __user *)arg);
	case IOC_EVENTFD: return vector_set(f->private_data, (void __user *)arg);
	default: return -ENOTTY;
	}
}

static __poll_t sliv_poll(struct file *f, poll_table *pt)
{
	struct sliv *d = f->private_data;

	poll_wait(f, &d->wq, pt);
	return READ_ONCE(d->gone) ? EPOLLHUP | EPOLLERR : EPOLLOUT;
}

/* --- memory --- */

static vm_fault_t sliv_huge_fault(struct vm_fault *vmf, enum page_entry_size size)
{
	struct vm_area_struct *vma = vmf->vma;
	struct sliv *d = vma->vm_private_data;
	unsigned long at = vmf->address & (size == PE_SIZE_PMD ? PMD_MASK : PAGE_MASK);
	vm_fault_t r = VM_FAULT_SIGBUS;
	phys_addr_t pa;

	if (size == PE_SIZE_PUD || (size == PE_SIZE_PMD && (at < vma->vm_start || at + PMD_SIZE > vma->vm_end)))
		return VM_FAULT_FALLBACK;
	pa = d->base + ((u64)vma->vm_pgoff << PAGE_SHIFT) + (at - vma->vm_start);
	if (size == PE_SIZE_PMD && !IS_ALIGNED(pa, PMD_SIZE))
		return VM_FAULT_FALLBACK;
	down_read(&d->lock);
	if (!d->gone && size == PE_SIZE_PTE)
		r = vmf_insert_pfn(vma, at, PHYS_PFN(pa));
	else if (!d->gone)	/* marked as a device's, or get_user_pages_fast() would look for a struct page */
		r = vmf_insert_pfn_pmd(vmf, phys_to_pfn_t(pa, PFN_DEV | PFN_MAP), vmf->flags & FAULT_FLAG_WRITE);
	up_read(&d->lock);
	return r;
}

static vm_fault_t sliv_fault(struct vm_fault *vmf)
{
	return sliv_huge_fault(vmf, PE_SIZE_PTE);
}

static const struct vm_operations_struct sliv_vm_ops = {
	.fault = sliv_fault,
	.huge_fault = sliv_huge_fault,
};

static int sliv_mmap(struct file *f, struct vm_area_struct *vma)
{
	struct sliv *d = f->private_data;
	u64 off = (u64)vma->vm_pgoff << PAGE_SHIFT;

	if (!(vma->vm_flags & VM_SHARED) || off > d->info.len || vma->vm_end - vma->vm_start > d->info.len - off)
		return -EINVAL;
	vma->vm_flags |= VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;
	vma->vm_private_data = d;	/* lives as long as the file, and the vma holds the file */
	vma->vm_ops = &sliv_vm_ops;
	return 0;
}

static loff_t sliv_llseek(struct file *f, loff_t off, int whence)
{
	struct sliv *d = f->private_data;

	return fixed_size_llseek(f, off, whence, d->info.len);
}

/* --- open and release --- */

static int sliv_open(struct inode *inode, struct file *f)
{
	struct sliv *d = container_of(f->private_data, struct sliv, misc);

	down_write(&d->lock);
	if (d->opened) {
		up_write(&d->lock);
		return -EBUSY;
	}
	d->opened = true;
	d->mapping = f->f_mapping;
	up_write(&d->lock);
	kref_get(&d->ref);
	f->private_data = d;
	inode_lock(inode);
	inode->i_flags |= S_DAX;	/* this kernel offers 2 MiB faults to files of this kind only */
	inode_unlock(inode);
	return 0;
}

/* After the last munmap too: a mapping holds the file. */
static int sliv_release(struct inode *inode, struct file *f)
{
	struct sliv *d = f->private_data;

	down_write(&d->lock);
	vectors_unbind(d);
	d->mapping = NULL;
	d->opened = false;
	up_write(&d->lock);
	kref_put(&d->ref, sliv_free);
	return 0;
}

static const struct file_operations sliv_fops = {
	.owner = THIS_MODULE,
	.open = sliv_open,
	.release = sliv_release,
	.write = sliv_write,
	.poll = sliv_poll,
	.unlocked_ioctl = sliv_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = sliv_llseek,
	.mmap = sliv_mmap,
	.get_unmapped_area = thp_get_unmapped_area,
};

/* --- the device comes and goes --- */

static int memory_init(struct pci_dev *pdev, struct sliv *d)
{
	void *kernel_view;

	d->base = pci_resource_start(pdev, SL_IVSHMEM_BAR_MEMORY);
	d->info.len = pci_resource_len(pdev, SL_IVSHMEM_BAR_MEMORY);
	if (!d->base || !d->info.len)
		return dev_err_probe(&pdev->dev, -ENOSPC, "the memory BAR got no address\n");
	/* reserves the memory type that the user's mappings inherit */
	kernel_view = devm_memremap(&pdev->dev, d->base, d->info.len, MEMREMAP_WB);
	if (IS_ERR(kernel_view))
		return PTR_ERR(kernel_view);
	d->info.cached = !pat_pfn_immune_to_uc_mtrr(PHYS_PFN(d->base));
	if (!d->info.cached)
		dev_warn(&pdev->dev, "memory at %pa is uncached (an MTRR says so); plug the device while the guest runs\n", &d->base);
	return 0;
}

static int device_init(struct pci_dev *pdev, struct sliv *d)
{
	int r = pcim_enable_device(pdev);

	if (!r)
		r = pcim_iomap_regions(pdev, BIT(SL_IVSHMEM_BAR_REGS), KBUILD_MODNAME);
	if (!r)
		r = memory_init(pdev, d);
	if (r)
		return r;
	d->regs = pcim_iomap_table(pdev)[SL_IVSHMEM_BAR_REGS];
	pci_set_master(pdev);	/* an MSI-X message is a write to memory */
	r = vectors_init(pdev, d);
	if (!r)
		r = misc_register(&d->misc);
	if (r)
		vectors_free(pdev, d);
	return r;
}

static int sliv_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct sliv *d = kzalloc(sizeof(*d), GFP_KERNEL);
	int r;

	if (!d)
		return -ENOMEM;
	d->number = ida_alloc(&numbers, GFP_KERNEL);
	if (d->number < 0) {
		r = d->number;
		kfree(d);
		return r;
	}
	kref_init(&d->ref);
	init_rwsem(&d->lock);
	init_waitqueue_head(&d->wq);
	spin_lock_init(&d->evlock);
	snprintf(d->name, sizeof(d->name), "sl_ivshmem%d", d->number);
	d->misc = (struct miscdevice){ .minor = MISC_DYNAMIC_MINOR, .name = d->name, .fops = &sliv_fops, .parent = &pdev->dev };
	pci_set_drvdata(pdev, d);
	r = device_init(pdev, d);
	if (r)
		kref_put(&d->ref, sliv_free);
	return r;
}

static void sliv_remove(struct pci_dev *pdev)
{
	struct sliv *d = pci_get_drvdata(pdev);

	misc_deregister(&d->misc);
	down_write(&d->lock);
	d->gone = true;
	if (d->mapping)
		unmap_mapping_range(d->mapping, 0, 0, 1);
	up_write(&d->lock);
	vectors_free(pdev, d);
	wake_up_all(&d->wq);
	kref_put(&d->ref, sliv_free);
}

static const struct pci_device_id sliv_ids[] = { { PCI_DEVICE(SL_IVSHMEM_VENDOR, SL_IVSHMEM_DEVICE) }, {} };
MODULE_DEVICE_TABLE(pci, sliv_ids);

static struct pci_driver sliv_driver = {
	.name = KBUILD_MODNAME,
	.id_table = sliv_ids,
	.probe = sliv_probe,
	.remove = sliv_remove,
};

static int __init sliv_init(void)
{
	int r = lines_init();

	if (r)
		return r;
	r = pci_register_driver(&sliv_driver);
	if (r)
		lines_exit();
	return r;
}

static void __exit sliv_exit(void)
{
	pci_unregister_driver(&sliv_driver);
	lines_exit();
}

module_init(sliv_init);
module_exit(sliv_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("ivshmem for user space: cached memory, doorbells, eventfds");
