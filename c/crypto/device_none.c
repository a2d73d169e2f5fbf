/* SPDX-License-Identifier: Apache-2.0 */
/* In place of device.c in programs without DPDK. */
#include <stdio.h>

#include "crypto/aead.h"

int sl_aead_device_open(const struct sl_aead_device_conf *conf, struct sl_aead_engine **ret, char *why)
{
	(void)conf;
	(void)ret;
	snprintf(why, SL_AEAD_WHY_LEN, "built without DPDK");
	return -EOPNOTSUPP;
}
