/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/socket.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int sock_open(const char *path, struct sockaddr_un *addr)
{
	int sock;

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (snprintf(addr->sun_path, sizeof(addr->sun_path), "%s", path) >= (int)sizeof(addr->sun_path))
		return -ENAMETOOLONG;
	sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return sock < 0 ? -errno : sock;
}

static int fail(int sock, int err)
{
	close(sock);
	return err;
}

static bool peer_is_owner(int sock, const char *path)
{
	const char *slash = strrchr(path, '/');
	socklen_t len = sizeof(struct ucred);
	char folder[128] = ".";
	struct ucred peer;
	struct stat st;

	if (slash)
		snprintf(folder, sizeof(folder), "%.*s/", (int)(slash - path), path);
	return !stat(folder, &st) && !getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) && peer.uid == st.st_uid;
}

int sl_vhost_sock_connect(const char *path)
{
	struct sockaddr_un addr;
	int sock = sock_open(path, &addr);

	if (sock < 0)
		return sock;
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)))
		return fail(sock, -errno);
	return peer_is_owner(sock, path) ? sock : fail(sock, -EPERM);
}

int sl_vhost_sock_listen(const char *path)
{
	struct sockaddr_un addr;
	int sock = sock_open(path, &addr);

	if (sock < 0)
		return sock;
	unlink(path);
	return bind(sock, (struct sockaddr *)&addr, sizeof(addr)) || listen(sock, 1) ? fail(sock, -errno) : sock;
}

int sl_vhost_sock_check(int fd)
{
	static const struct { int what, value; } wanted[] = {
		{ SO_DOMAIN, AF_UNIX }, { SO_TYPE, SOCK_STREAM }, { SO_ACCEPTCONN, 1 },
	};
	int value, flags = fcntl(fd, F_GETFL);
	socklen_t len = sizeof(value);
	size_t i;

	for (i = 0; i < sl_nb(wanted); i++)
		if (getsockopt(fd, SOL_SOCKET, wanted[i].what, &value, &len) || value != wanted[i].value)
			return -EINVAL;
	/* a peer that went away again before it was accepted must not make us wait */
	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ? -errno : fd;
}

void sl_vhost_fd_close(int fd)
{
	static const struct linger off = { 0, 0 };
	int err = setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));

	(void)err;   /* most are no sockets */
	close(fd);
}

bool sl_vhost_fds_take(struct sl_vu_msg *m, struct msghdr *msg)
{
	bool fits = !(msg->msg_flags & MSG_CTRUNC);
	struct cmsghdr *cm;
	uint32_t i, nb;
	int fd;

	for (cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		nb = (uint32_t)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (i = 0; i < nb; i++) {
			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
			if (m->nb_fd < SL_VU_FDS_MAX) {
				m->fds[m->nb_fd++] = fd;
			} else {
				sl_vhost_fd_close(fd);
				fits = false;
			}
		}
	}
	return fits;
}
