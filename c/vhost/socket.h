/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX stream sockets by path. All return a descriptor that does not block, or -errno. */
#ifndef SL_VHOST_SOCKET_H
#define SL_VHOST_SOCKET_H

#include "base/base.h"

/* Connects to who listens at path. -EPERM: that is not the owner of the folder that path is in. Whoever owns a folder may
 * put a link there that leads to somebody else's socket. */
int sl_vhost_sock_connect(const char *path);

/* Listens at path; a stale socket there is replaced. */
int sl_vhost_sock_listen(const char *path);

/* Checks a listening socket that was handed over, and returns it. -EINVAL: it is something else. */
int sl_vhost_sock_check(int fd);

#endif
