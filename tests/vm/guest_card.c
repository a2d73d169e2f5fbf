/* SPDX-License-Identifier: Apache-2.0 */
/* An accelerator for guests, where there is none: preloaded into the instance, it has a device of QEMU's, of the vendor
 * CARD_VENDOR, be a card whose driver is one of DPDK's of software. That it is found, bound, met, used and gone is real.
 * It also makes the processor one without a fast library for records, or the card would be slower than that. */
#include <dlfcn.h>
#include <rte_bus_vdev.h>
#include <rte_eal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define CARD "crypto_aesni_gcm"
#ifndef CARD_VENDOR
#define CARD_VENDOR "0x1234"   /* of edu */
#endif

void *dlopen(const char *file, int flags)
{
	void *(*next)(const char *, int);

	*(void **)&next = dlsym(RTLD_NEXT, "dlopen");
	return file && strstr(file, "libIPSec_MB.so") ? NULL : next(file, flags);
}

void init_mb_mgr_sse(void *mgr);
void init_mb_mgr_auto(void *mgr, int *arch);

/* The driver's library takes AVX where the processor has it, though the kernel may not have enabled it: so in a guest of
 * a guest. And it says of none that it is fit, so that nobody uses it as software. */
void init_mb_mgr_auto(void *mgr, int *arch)
{
	(void)arch;
	init_mb_mgr_sse(mgr);
}

static bool is_card(const char *device)
{
	char path[100], vendor[8] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vendor", device);
	f = fopen(path, "re");
	if (f && !fgets(vendor, sizeof(vendor), f))
		*vendor = 0;
	if (f)
		fclose(f);
	return !strncmp(vendor, CARD_VENDOR, 6);
}

int rte_eal_hotplug_add(const char *bus, const char *device, const char *arguments)
{
	int (*next)(const char *, const char *, const char *);

	*(void **)&next = dlsym(RTLD_NEXT, "rte_eal_hotplug_add");
	return is_card(device) ? rte_vdev_init(CARD, arguments) : next(bus, device, arguments);
}

/* It may be pulled out already. */
int rte_eal_hotplug_remove(const char *bus, const char *device)
{
	int (*next)(const char *, const char *);

	*(void **)&next = dlsym(RTLD_NEXT, "rte_eal_hotplug_remove");
	return rte_vdev_uninit(CARD) ? next(bus, device) : 0;
}
