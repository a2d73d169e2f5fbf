/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "crypto/aead.h"
#include "instance/instance.h"

void sl_accelerator_load(struct sl_runner *r, const char *device)
{
	struct sl_aead_device_conf conf = {.device = device, .runtime_dir = "/run"};
	char why[SL_AEAD_WHY_LEN];

	if (!device)
		return;
	r->inst.may_accelerate = !sl_aead_device_load(&conf, why);
	if (!r->inst.may_accelerate)
		sl_log(&r->log, "warning", "%s is not used: %s", device, why);
}
