/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/plug.h"

#include <pthread.h>
#include <rte_cryptodev.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <stdio.h>

#include "base/atomic.h"
#include "crypto/aead.h"

/* As EAL, of which there is one. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* whoever has it may use the device, or have it go */
static uint32_t present;                                   /* its number; 0: there is none */
static uint32_t last;

uint32_t sl_aead_device_number(void)
{
	return __atomic_load_n(&present, __ATOMIC_ACQUIRE);
}

void sl_plug_fixed(void)
{
	__atomic_store_n(&present, ++last, __ATOMIC_RELEASE);
}

bool sl_plug_hold(uint32_t number)
{
	if (!number || sl_aead_device_number() != number)   /* nobody waits while one comes, which may take long */
		return false;
	pthread_mutex_lock(&lock);
	if (sl_aead_device_number() == number)
		return true;
	pthread_mutex_unlock(&lock);
	return false;
}

void sl_plug_drop(void)
{
	pthread_mutex_unlock(&lock);
}

/* One that is of no use stays with DPDK until the end: crypto_virtio of 22.11 spoils its successor if it is removed. */
static int probe(const char *address, char *why)
{
	int err = rte_eal_hotplug_add("pci", address, "");
	struct rte_cryptodev_info info = { .driver_name = "none for cryptography" };
	uint8_t id;

	if (err) {
		snprintf(why, SL_AEAD_WHY_LEN, "step=\"no driver of DPDK takes it\" error=\"%s\"", rte_strerror(-err));
		return -ENODEV;
	}
	err = sl_device_find(&id);
	if (!err)
		return 0;
	if (err == -ENOTSUP)
		rte_cryptodev_info_get(id, &info);
	snprintf(why, SL_AEAD_WHY_LEN, "driver=\"%s\" error=\"it has neither AES-GCM nor ChaCha20-Poly1305 as TLS "
		 "needs them\"", info.driver_name);
	return -ENOTSUP;
}

int sl_aead_device_plug(const char *address, char *why)
{
	int err;

	if (sl_aead_device_number())
		return -EBUSY;
	pthread_mutex_lock(&lock);
	err = probe(address, why);
	if (!err)
		sl_plug_fixed();
	pthread_mutex_unlock(&lock);
	return err;
}

void sl_aead_device_unplug(const char *address)
{
	uint8_t id;

	__atomic_store_n(&present, 0, __ATOMIC_RELEASE);
	pthread_mutex_lock(&lock);
	if (!sl_device_find(&id))
		rte_cryptodev_stop(id);   /* a driver does not let a running one go */
	rte_eal_hotplug_remove("pci", address);
	pthread_mutex_unlock(&lock);
}
