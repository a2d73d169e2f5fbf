/* SPDX-License-Identifier: Apache-2.0 */
/* How the router gives up what it no longer needs. */
#ifndef SL_PRIVILEGES_H
#define SL_PRIVILEGES_H

#include <sys/types.h>

#include "base/base.h"

/* For good: becomes uid:gid without supplementary groups, loses every capability (bounding set too), sets no_new_privs
 * and rlimits, and allows only the system calls of the router's loop and of tap ports; any other kills the process.
 * Everything that needs rights (sockets, maps, files) must be open. 0 or -errno; after an error the process must
 * end. */
int sl_privileges_drop(uid_t uid, gid_t gid);

#endif
