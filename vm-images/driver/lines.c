// SPDX-License-Identifier: GPL-2.0
#include "lines.h"

#include <linux/acpi.h>
#include <linux/pci.h>

enum {
	PIIX_LINES = 0x60,		/* a byte for each of the four: its interrupt, */
	PIIX_OFF = 0x80,		/* and whether it is off */
};

/* A network interface that is plugged in has a line. The kernel would ask ACPI where it goes, and QEMU's answer is a program
 * of 128 rounds: 0.2 s under TCG. So we do what it would come to: the PIIX3 holds the line's interrupt, as the firmware chose
 * it, and the kernel has switched it off until it is used. Without a PIIX3, or without a choice, ACPI is asked. */
static int line_set(struct notifier_block *nb, unsigned long action, void *dev)
{
	struct pci_dev *pdev = to_pci_dev(dev), *piix;
	u8 choice = 0;
	int reg, irq;

	if (action != BUS_NOTIFY_ADD_DEVICE || !pdev->pin || !pci_is_root_bus(pdev->bus))
		return NOTIFY_DONE;
	piix = pci_get_device(PCI_VENDOR_ID_INTEL, PCI_DEVICE_ID_INTEL_82371SB_0, NULL);
	if (!piix)
		return NOTIFY_DONE;
	reg = PIIX_LINES + (PCI_SLOT(pdev->devfn) + pdev->pin - 2) % 4;
	pci_read_config_byte(piix, reg, &choice);
	choice &= ~PIIX_OFF;
	irq = choice && choice < 16 ? acpi_register_gsi(dev, choice, ACPI_LEVEL_SENSITIVE, ACPI_ACTIVE_HIGH) : 0;
	if (irq > 0) {
		pci_write_config_byte(piix, reg, choice);
		pdev->irq = irq;
		pdev->pin = 0;	/* nothing left to ask ACPI */
	}
	pci_dev_put(piix);
	return NOTIFY_OK;
}

static struct notifier_block devices = { .notifier_call = line_set };

int lines_init(void)
{
	return bus_register_notifier(&pci_bus_type, &devices);
}

void lines_exit(void)
{
	bus_unregister_notifier(&pci_bus_type, &devices);
}
