/* SPDX-License-Identifier: Apache-2.0 */
/* In place of device.c in programs without DPDK. */
#include <stdio.h>

#include "crypto/aead.h"

int sl_aead_device_load(const struct sl_aead_device_conf *conf, char *why)
{
	(void)conf;
	snprintf(why, SL_AEAD_WHY_LEN, "error=\"built without DPDK\"");
	return -EOPNOTSUPP;
}

uint32_t sl_aead_device_number(void)
{
	return 0;
}

int sl_aead_device_plug(const char *address, char *why)
{
	(void)address;
	return sl_aead_device_load(NULL, why);
}

void sl_aead_device_unplug(const char *address)
{
	(void)address;
}

int sl_aead_device_open(struct sl_aead_engine **ret, char *why)
{
	(void)ret;
	snprintf(why, SL_AEAD_WHY_LEN, "error=\"built without DPDK\"");
	return -EOPNOTSUPP;
}
