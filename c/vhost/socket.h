/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX stream sockets by path, which return a descriptor that does not block, or -errno; and descriptors that came by
 * one. */
#ifndef SL_VHOST_SOCKET_H
#define SL_VHOST_SOCKET_H

#include <sys/socket.h>

#include "vhost/message.h"

/* Connects to who listens at path. -EPERM: that is not the owner of the folder that path is in. Whoever owns a folder may
 * put a link there that leads to somebody else's socket. */
int sl_vhost_sock_connect(const char *path);

/* Listens at path; a stale socket there is replaced. */
int sl_vhost_sock_listen(const char *path);

/* Checks a listening socket that was handed over, and returns it. -EINVAL: it is something else. */
int sl_vhost_sock_check(int fd);

/* Appends the descriptors that came with msg to those of m; false: too many, the rest is closed. */
bool sl_vhost_fds_take(struct sl_vu_msg *m, struct msghdr *msg);

/* Closes a descriptor that a peer sent, whatever it is: a socket that lingers would make close() wait. */
void sl_vhost_fd_close(int fd);

#endif
