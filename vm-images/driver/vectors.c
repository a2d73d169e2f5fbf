// SPDX-License-Identifier: GPL-2.0
#include "device.h"

#include <linux/interrupt.h>
#include <linux/uaccess.h>

static irqreturn_t vector_interrupt(int irq, void *arg)
{
	struct sliv_vector *v = arg;
	unsigned long flags;

	spin_lock_irqsave(&v->d->evlock, flags);
	if (v->ev)
		eventfd_signal(v->ev, 1);
	spin_unlock_irqrestore(&v->d->evlock, flags);
	return IRQ_HANDLED;
}

/* With d->lock held for writing. */
static void vector_bind(struct sliv_vector *v, struct eventfd_ctx *ev)
{
	bool was = v->ev, is = ev;

	spin_lock_irq(&v->d->evlock);
	swap(v->ev, ev);
	spin_unlock_irq(&v->d->evlock);
	if (!v->d->gone && was && !is)
		disable_irq(v->irq);
	if (!v->d->gone && is && !was)
		enable_irq(v->irq);
	if (ev)
		eventfd_ctx_put(ev);
}

long vector_set(struct sliv *d, const struct sl_ivshmem_eventfd __user *from)
{
	struct sl_ivshmem_eventfd e;
	struct eventfd_ctx *ev = NULL;

	if (copy_from_user(&e, from, sizeof(e)))
		return -EFAULT;
	if (e.vector >= d->info.nb_vectors)
		return -EINVAL;
	if (e.fd >= 0)
		ev = eventfd_ctx_fdget(e.fd);
	if (IS_ERR(ev))
		return PTR_ERR(ev);
	down_write(&d->lock);
	vector_bind(&d->vectors[e.vector], ev);
	up_write(&d->lock);
	return 0;
}

void vectors_unbind(struct sliv *d)
{
	for (u32 i = 0; i < d->info.nb_vectors; i++)
		vector_bind(&d->vectors[i], NULL);
}

int vectors_init(struct pci_dev *pdev, struct sliv *d)
{
	int n = pci_alloc_irq_vectors(pdev, 1, SL_IVSHMEM_VECTORS_MAX, PCI_IRQ_MSIX), r = 0;

	d->info.nb_vectors = max(n, 0);	/* ivshmem-plain has none */
	for (int i = 0; i < n && !r; i++) {
		int irq = pci_irq_vector(pdev, i);

		d->vectors[i].d = d;
		r = request_irq(irq, vector_interrupt, IRQF_NO_AUTOEN, KBUILD_MODNAME, &d->vectors[i]);
		d->vectors[i].irq = r ? 0 : irq;
	}
	return r;
}

void vectors_free(struct pci_dev *pdev, struct sliv *d)
{
	for (u32 i = 0; i < d->info.nb_vectors; i++)
		if (d->vectors[i].irq)
			free_irq(d->vectors[i].irq, &d->vectors[i]);
	pci_free_irq_vectors(pdev);
}
