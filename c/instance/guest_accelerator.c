/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's accelerators: PCI functions that the manager plugs in and takes away. A thread of the instance follows it.
 * It keeps the rights that the walls take from all else, as DPDK needs them: to open files of sysfs, and to know where
 * memory lies. Who drives a device that reaches all memory could take them anyway: in such a machine, the wall is the
 * machine. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "crypto/aead.h"
#include "instance/guest.h"
#include "instance/instance.h"

#define PCI "/sys/bus/pci"
#define DRIVER "uio_pci_generic"
#define REFUSED "swarmline-refused"   /* no driver's name: remembered where it lasts as long as the device */

enum { ADDRESS_LEN = 16 };

struct finder {
	struct sl_log log;
	int uevents;
	char has[ADDRESS_LEN];      /* empty: none */
};

/* ---- files ------------------------------------------------------------------------------------------------------- */

static bool text_put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

static bool function_put(const char *address, const char *file, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), PCI "/devices/%s/%s", address, file);
	return text_put(path, text);
}

static void function_get(const char *address, const char *file, char text[64])
{
	char path[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), PCI "/devices/%s/%s", address, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, 63);
	text[n < 0 ? 0 : n] = 0;
	if (fd >= 0)
		close(fd);
}

/* Of the driver that has it; empty: none. */
static void driver_of(const char *address, char name[64])
{
	char path[128], target[256];
	ssize_t n;

	snprintf(path, sizeof(path), PCI "/devices/%s/driver", address);
	n = readlink(path, target, sizeof(target) - 1);
	target[n < 0 ? 0 : n] = 0;
	snprintf(name, 64, "%s", strrchr(target, '/') ? strrchr(target, '/') + 1 : "");
}

/* ---- devices ----------------------------------------------------------------------------------------------------- */

/* By its class: a processor, encryption, an accelerator, or none that has a name. */
static bool is_candidate(const char *address)
{
	char text[64];
	unsigned long class;

	if (*address == '.' || strlen(address) >= ADDRESS_LEN)
		return false;
	function_get(address, "driver_override", text);
	if (!strncmp(text, REFUSED, strlen(REFUSED)))
		return false;
	function_get(address, "class", text);
	class = strtoul(text, NULL, 16) >> 16;
	return class == 0x00 || class == 0x0b || class == 0x10 || class == 0x12 || class == 0xff;
}

static bool is_ours_to_bind(const char *driver)
{
	return !*driver || !strcmp(driver, DRIVER) || !strcmp(driver, "virtio-pci");
}

/* Into the hands of the driver by which user space can use it: of virtio's, that takes all of its kind, or of none. One
 * that the kernel is still setting up is not bound now, but when it is ready: then there is another notice. To write
 * which driver it shall have waits until one that is about to take it has done so. */
static bool bind_for_us(const char *address)
{
	char driver[64];

	driver_of(address, driver);
	if (!is_ours_to_bind(driver) || !function_put(address, "driver_override", DRIVER))
		return false;
	driver_of(address, driver);
	if (!strcmp(driver, DRIVER))
		return true;
	if (*driver)
		function_put(address, "driver/unbind", address);
	text_put(PCI "/drivers_probe", address);
	driver_of(address, driver);
	return !strcmp(driver, DRIVER);
}

static void take(struct finder *f, const char *address)
{
	char why[SL_AEAD_WHY_LEN];

	if (sl_aead_device_plug(address, why)) {
		sl_log(&f->log, "warning", "accelerator %s is not used: %s", address, why);
		function_put(address, "driver_override", REFUSED);
		return;
	}
	snprintf(f->has, sizeof(f->has), "%s", address);
	sl_log(&f->log, "info", "accelerator %s", address);
}

/* The kernel has taken it from us, and may not have removed it yet: one that still says whose it was is not found
 * again. Another one at the same address does not say that. */
static void leave(struct finder *f)
{
	char text[64];

	sl_aead_device_unplug(f->has);
	function_get(f->has, "driver_override", text);
	if (!strncmp(text, DRIVER, strlen(DRIVER)))
		function_put(f->has, "driver_override", REFUSED);
	sl_log(&f->log, "info", "accelerator %s is gone", f->has);
	*f->has = 0;
}

static void look(struct finder *f)
{
	char driver[64];
	const struct dirent *e;
	DIR *dir;

	driver_of(f->has, driver);
	if (*f->has && strcmp(driver, DRIVER))
		leave(f);
	dir = opendir(PCI "/devices");
	while (dir && (e = readdir(dir)))
		if (!*f->has && is_candidate(e->d_name) && bind_for_us(e->d_name))
			take(f, e->d_name);
	if (dir)
		closedir(dir);
}

static void *follow(void *arg)
{
	struct finder *f = arg;

	for (;;) {
		look(f);
		sl_guest_uevents_wait(f->uevents, -1);
	}
	return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int start(struct sl_runner *r)
{
	struct finder *f = calloc(1, sizeof(*f));
	pthread_t thread;
	int err;

	if (!f)
		return -ENOMEM;
	f->log = r->log;
	f->uevents = sl_guest_uevents_open();
	err = f->uevents < 0 ? f->uevents : -pthread_create(&thread, NULL, follow, f);
	return err;
}

bool sl_guest_accelerators_follow(struct sl_runner *r)
{
	struct sl_aead_device_conf conf = {.runtime_dir = "/run"};
	char why[SL_AEAD_WHY_LEN] = "step=thread", pages[16];
	int err;

	if (access(PCI "/drivers/" DRIVER, F_OK))   /* not the image for it */
		return false;
	snprintf(pages, sizeof(pages), "%u", SL_AEAD_HUGE_PAGES);
	text_put("/proc/sys/vm/nr_hugepages", pages);
	err = sl_aead_device_load(&conf, why);
	err = err ? err : start(r);
	if (err)
		sl_log(&r->log, "warning", "accelerators can not be used: %s", why);
	r->inst.may_accelerate = !err;
	return !err;
}
