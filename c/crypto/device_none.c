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

int sl_aead_device_open(struct sl_aead_engine **ret, char *why)
{
	(void)ret;
	snprintf(why, SL_AEAD_WHY_LEN, "error=\"built without DPDK\"");
	return -EOPNOTSUPP;
}
