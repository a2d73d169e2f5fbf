/* SPDX-License-Identifier: Apache-2.0 */
/* How the router gives up what it no longer needs. */
#ifndef SL_PRIVILEGES_H
#define SL_PRIVILEGES_H

#include <sys/types.h>

#include "base/base.h"

/* Whose code is in this process. */
enum sl_privileges_kind {
	SL_PRIVILEGES_OWN,       /* ours, one thread: a system call that is not allowed kills the process */
	SL_PRIVILEGES_LIBRARY,   /* DPDK's drivers and threads too: some more calls are allowed, and any other fails with
	                          * EPERM, for nobody has tried every driver */
};

/* For good: becomes uid:gid without supplementary groups, loses every capability (bounding set too), sets no_new_privs
 * and rlimits, and allows only the system calls of the router's loop and of its ports, in every thread. Everything that
 * needs rights (sockets, maps, files) must be open. 0 or -errno; after an error the process must end. */
int sl_privileges_drop(uid_t uid, gid_t gid, enum sl_privileges_kind kind);

#endif
