/* SPDX-License-Identifier: Apache-2.0 */
/* In place of multi.c where libipsec-mb was not found. */
#include "crypto/aead.h"

void sl_aead_multi_load(void)
{
}

int sl_aead_multi_open(struct sl_aead_engine **ret)
{
	(void)ret;
	return -EOPNOTSUPP;
}
