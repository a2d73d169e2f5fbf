/* SPDX-License-Identifier: Apache-2.0 */
#include "edge/doorbell.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/base.h"

static int fd_of(struct msghdr *m)
{
	int fd = -1;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* One message is a little-endian int64 with at most one descriptor, which comes with its first byte. Returns 1 when
 * complete, 0 when more is to come, -errno. */
static int message_read(struct sl_doorbells *d, int64_t *value, int *fd)
{
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec v = {d->part + d->part_len, sizeof(d->part) - d->part_len};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(d->sock, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	uint64_t number = 0;
	int got;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (!n)
		return -ECONNRESET;
	got = fd_of(&m);
	if (got >= 0)
		d->part_fd = got;
	d->part_len += (unsigned)n;
	if (d->part_len < sizeof(d->part))
		return 0;
	for (unsigned i = 0; i < sizeof(d->part); i++)
		number |= (uint64_t)d->part[i] << (8 * i);
	*value = (int64_t)number;
	*fd = d->part_fd;
	d->part_len = 0;
	d->part_fd = -1;
	return 1;
}

static int message_wait(struct sl_doorbells *d, uint64_t deadline_ns, int64_t *value, int *fd)
{
	for (;;) {
		int r = message_read(d, value, fd);
		uint64_t now = sl_now_ns();
		struct pollfd p = {.fd = d->sock, .events = POLLIN};

		if (r)
			return r;
		if (now >= deadline_ns)
			return -ETIMEDOUT;
		if (poll(&p, 1, (int)((deadline_ns - now) / 1000000) + 1) < 0 && errno != EINTR)
			return -errno;
	}
}

static int peer_set(struct sl_doorbells *d, int64_t id, int fd)
{
	bool own = id == d->vm_id;

	if (id < 0 || id >= SL_VM_MAX || (own && (fd < 0 || d->nb_own == SL_BELLS))) {
		if (fd >= 0)
			close(fd);
		return -EPROTO;
	}
	if (own) {
		d->own[d->nb_own++] = fd;
		return 0;
	}
	if (d->peer[id] >= 0)
		close(d->peer[id]);
	d->peer[id] = fd;
	return 0;
}

int sl_doorbells_open(struct sl_doorbells *d, int sock, int timeout_ms, int *control_fd)
{
	uint64_t deadline = sl_now_ns() + (uint64_t)timeout_ms * 1000000;
	int64_t version, id, minus_one, value;
	int fd, r;

	memset(d, 0, sizeof(*d));
	d->sock = sock;
	d->part_fd = -1;
	for (unsigned i = 0; i < SL_VM_MAX; i++)
		d->peer[i] = -1;
	if ((r = message_wait(d, deadline, &version, &fd)) < 0 || (r = message_wait(d, deadline, &id, &fd)) < 0 ||
	    (r = message_wait(d, deadline, &minus_one, control_fd)) < 0)
		return r;
	if (version || id < 1 || id >= SL_VM_MAX || minus_one != -1 || *control_fd < 0)
		return -EPROTO;
	d->vm_id = (uint16_t)id;
	while (d->nb_own < SL_BELLS) {
		r = message_wait(d, deadline, &value, &fd);
		if (r < 0 || (r = peer_set(d, value, fd)))
			return r;
	}
	return 0;
}

int sl_doorbells_next(struct sl_doorbells *d, uint16_t *vm_id, int *fd)
{
	int64_t value;
	int r = message_read(d, &value, fd);

	if (r <= 0)
		return r;
	r = peer_set(d, value, *fd);
	*vm_id = (uint16_t)value;
	return r ? r : 1;
}
