/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's environment (EAL), started once in a process, for one device. */
#ifndef SL_EAL_H
#define SL_EAL_H

#include "base/base.h"

#define SL_EAL_LATER_MB 32   /* also a part of a string */

enum { SL_EAL_ARGS_MAX = 32, SL_EAL_WHY_LEN = 200, SL_EAL_DEVICE_MAX = 512 };

struct sl_eal_conf {
	const char *device;         /* as EAL names it, with arguments: "0000:01:00.0", "net_tap0,iface=x"; NULL:
				     * physical ones that come later: SL_EAL_LATER_MB of huge pages are taken */
	const char *const *args;    /* further arguments, at most SL_EAL_ARGS_MAX; ends with NULL. NULL: none */
	const char *runtime_dir;    /* EAL makes a folder dpdk in it, left to its owner */
};

/* Takes the device and no other; one of software (net_, crypto_ ...) without huge pages, for others may be waiting for
 * those; a physical one with free huge pages, without a file. Needs root; leaves threads behind; the calling thread
 * stays on the CPUs that it may run on. What EAL has to say goes to the standard error output. Returns 0, or -errno
 * with why: key="value" pairs that say what failed and how to mend it. */
int sl_eal_start(const struct sl_eal_conf *conf, char why[SL_EAL_WHY_LEN]);

#endif
