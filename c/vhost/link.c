/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/link.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "vhost/socket.h"

enum {
	EVENTS_PER_POLL = 16,
	READS_PER_POLL = 32,              /* two for each message */
	HEADER_LEN = sizeof(struct sl_vu_header),
};

union fds_room {
	struct cmsghdr align;
	char room[CMSG_SPACE(SL_VU_FDS_MAX * sizeof(int))];
};

enum event { EVENT_SOCK, EVENT_LISTEN, EVENT_TIMER, EVENT_WAKE, EVENT_KICK };   /* + number of the ring */

static int watch(struct sl_vhost_link *l, int fd, uint64_t event)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = event };

	return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static void unwatch(struct sl_vhost_link *l, int fd)
{
	epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static void timer_set(struct sl_vhost_link *l, uint32_t ms)
{
	struct itimerspec t = { .it_value = { ms / 1000, (long)(ms % 1000) * 1000000 } };

	timerfd_settime(l->timer_fd, 0, &t, NULL);
}

/* The next try of a client, later each time. */
static void retry_later(struct sl_vhost_link *l)
{
	timer_set(l, l->retry_ms);
	l->retry_ms = sl_min(2 * l->retry_ms, (uint32_t)SL_VHOST_RETRY_MAX_MS);
}

/* ---- up and down ------------------------------------------------------------------------------------------------- */

/* Takes sock. */
static void up(struct sl_vhost_link *l, int sock)
{
	if (watch(l, sock, EVENT_SOCK)) {
		close(sock);
		timer_set(l, SL_VHOST_RETRY_MS);
		return;
	}
	l->sock = sock;
	l->have = 0;
	l->msg.nb_fd = 0;
	l->up_ns = sl_now_ns();
	l->state = SL_VHOST_UP;
	l->retry_ms = SL_VHOST_RETRY_MS;
	l->dev.count[SL_VHOST_LINK_UP]++;
}

static void try_connect(struct sl_vhost_link *l)
{
	int sock = sl_vhost_sock_connect(l->path);

	if (sock >= 0) {
		up(l, sock);
		return;
	}
	l->dev.count[SL_VHOST_LINK_REFUSED] += sock == -EPERM;
	retry_later(l);
}

static void try_accept(struct sl_vhost_link *l)
{
	int sock = accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (sock < 0)
		return;
	unwatch(l, l->listen_fd);   /* one peer; the next waits for its end */
	up(l, sock);
	if (l->state != SL_VHOST_UP)
		watch(l, l->listen_fd, EVENT_LISTEN);
}

/* Not from within the loop that handles messages of this socket. */
static void wait_for_peer(struct sl_vhost_link *l)
{
	l->state = SL_VHOST_WAITING;
	if (!l->server)
		try_connect(l);
	else if (watch(l, l->listen_fd, EVENT_LISTEN))
		timer_set(l, SL_VHOST_RETRY_MS);
}

static void quarantine(struct sl_vhost_link *l)
{
	l->dev.count[SL_VHOST_LINK_QUARANTINED]++;
	l->penalty_ms = sl_min(sl_max(2 * l->penalty_ms, (uint32_t)SL_VHOST_PENALTY_MIN_MS),
			       (uint32_t)SL_VHOST_PENALTY_MAX_MS);
	l->state = SL_VHOST_QUARANTINE;
	l->storm = (struct sl_vhost_storm){ 0 };
	timer_set(l, l->penalty_ms);
}

static void fds_drop(struct sl_vu_msg *m)
{
	while (m->nb_fd)
		sl_vhost_fd_close(m->fds[--m->nb_fd]);
}

/* Closes the socket. What is still in its queue is taken out before, because of the descriptors. */
static void sock_close(struct sl_vhost_link *l)
{
	union fds_room cbuf;
	struct iovec iov = { &l->msg.body, sizeof(l->msg.body) };
	struct msghdr msg;

	unwatch(l, l->sock);
	shutdown(l->sock, SHUT_RDWR);   /* nothing more comes in: the loop ends */
	do {
		fds_drop(&l->msg);
		msg = (struct msghdr){
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = cbuf.room, .msg_controllen = sizeof(cbuf.room),
		};
		if (recvmsg(l->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
			break;
		sl_vhost_fds_take(&l->msg, &msg);
	} while (true);
	close(l->sock);
	l->sock = -1;
}

static void down(struct sl_vhost_link *l, bool violated)
{
	int storm;

	sock_close(l);
	sl_vhost_reset(&l->dev);
	if (sl_now_ns() - l->up_ns > SL_VHOST_GOOD_MS * 1000000ull)
		l->penalty_ms = 0;
	if (!violated) {
		l->dev.count[SL_VHOST_LINK_LOST]++;
		storm = sl_vhost_storm_find(&l->storm, &l->dev);
		violated = storm >= 0;
		if (violated)
			l->dev.count[storm]++;
	}
	if (violated) {
		quarantine(l);
		return;
	}
	l->state = SL_VHOST_WAITING;
	/* a client does not connect at once: a peer that only closes would keep us busy */
	if (!l->server || watch(l, l->listen_fd, EVENT_LISTEN))
		timer_set(l, SL_VHOST_RETRY_MS);
}

void sl_vhost_link_check(struct sl_vhost_link *l)
{
	int wrong;

	if (l->state != SL_VHOST_UP)
		return;
	wrong = sl_vhost_memory_is_lost(&l->dev.mem) ? (int)SL_VHOST_MEMORY_LOST : sl_vhost_storm_find(&l->storm, &l->dev);
	if (wrong < 0)
		return;
	l->dev.count[wrong]++;
	down(l, true);
}

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* Reads on where the last read stopped. >0: progress; 0: nothing more now; -EPIPE: closed; -EPROTO: violation. */
static int message_read(struct sl_vhost_link *l)
{
	union fds_room cbuf;
	bool in_header = l->have < HEADER_LEN;
	struct iovec iov = {
		in_header ? (uint8_t *)&l->msg.hdr + l->have : (uint8_t *)&l->msg.body + (l->have - HEADER_LEN),
		in_header ? HEADER_LEN - l->have : HEADER_LEN + l->msg.hdr.size - l->have,
	};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = cbuf.room, .msg_controllen = sizeof(cbuf.room),
	};
	ssize_t len = recvmsg(l->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (len < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -EPIPE;
	if (!len)
		return -EPIPE;
	if (!sl_vhost_fds_take(&l->msg, &msg)) {
		l->dev.count[SL_VHOST_MSG_FDS]++;
		return -EPROTO;
	}
	l->have += (uint32_t)len;
	return 1;
}

static int answer_send(struct sl_vhost_link *l, const struct sl_vu_msg *a)
{
	uint8_t wire[HEADER_LEN + sizeof(a->body)];
	size_t len = HEADER_LEN + a->hdr.size;

	memcpy(wire, &a->hdr, HEADER_LEN);
	memcpy(wire + HEADER_LEN, &a->body, a->hdr.size);
	/* a peer that does not read its answers is as good as gone */
	return send(l->sock, wire, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len ? 0 : -EPIPE;
}

/* After progress: checks a complete header, runs a complete message. */
static int message_step(struct sl_vhost_link *l)
{
	struct sl_vu_msg answer;
	int wrong, n;

	if (l->have == HEADER_LEN) {
		memset(&l->msg.body, 0, sizeof(l->msg.body));
		wrong = sl_vu_header_check(&l->msg.hdr);
		if (wrong >= 0) {
			l->dev.count[wrong]++;
			return -EPROTO;
		}
	}
	if (l->have < HEADER_LEN || l->have < HEADER_LEN + l->msg.hdr.size)
		return 0;
	l->have = 0;
	n = sl_vhost_message(&l->dev, &l->msg, &answer);
	if (answer.hdr.size && answer_send(l, &answer) && n >= 0)
		n = -EPIPE;
	return sl_min(n, 0);
}

static void sock_ready(struct sl_vhost_link *l)
{
	uint32_t i;
	int n;

	if (l->sock < 0)
		return;
	for (i = 0; i < READS_PER_POLL; i++) {
		n = message_read(l);
		if (!n)
			return;
		if (n > 0)
			n = message_step(l);
		if (n < 0) {
			down(l, n == -EPROTO);
			return;
		}
	}
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

static void timer_ready(struct sl_vhost_link *l)
{
	uint64_t n;

	if (read(l->timer_fd, &n, sizeof(n)) > 0 && l->state != SL_VHOST_UP)
		wait_for_peer(l);
}

void sl_vhost_link_poll(struct sl_vhost_link *l)
{
	struct epoll_event ev[EVENTS_PER_POLL];
	int i, n = epoll_wait(l->epoll_fd, ev, EVENTS_PER_POLL, 0);

	for (i = 0; i < n; i++)
		switch (ev[i].data.u64) {
		case EVENT_SOCK:
			sock_ready(l);
			break;
		case EVENT_LISTEN:
			if (l->state == SL_VHOST_WAITING)
				try_accept(l);
			break;
		case EVENT_TIMER:
			timer_ready(l);
			break;
		case EVENT_WAKE:
			break;   /* the caller looks at the rings in any case */
		default:
			sl_vhost_kicked(&l->dev, (uint32_t)(ev[i].data.u64 - EVENT_KICK));
		}
}

void sl_vhost_link_wake(struct sl_vhost_link *l, bool on)
{
	uint64_t n = 1;
	ssize_t done;

	if (on == l->awake)
		return;
	done = on ? write(l->wake_fd, &n, sizeof(n)) : read(l->wake_fd, &n, sizeof(n));
	l->awake = done > 0 ? on : l->awake;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int link_start(struct sl_vhost_link *l, const struct sl_vhost_link_conf *conf)
{
	struct sl_vhost_conf dev = {
		.nb_pair = conf->nb_pair, .unsealed_ok = conf->unsealed_ok, .frame_max = conf->frame_max,
		.kick_event = EVENT_KICK, .bell = conf->bell,
	};
	int err;

	l->epoll_fd = dev.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	sl_vhost_init(&l->dev, &dev);
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->epoll_fd < 0 || l->timer_fd < 0 || l->wake_fd < 0)
		return -errno;
	err = watch(l, l->timer_fd, EVENT_TIMER);
	if (!err)
		err = watch(l, l->wake_fd, EVENT_WAKE);
	/* last: a socket that was handed over is ours only on success */
	if (!err && conf->server)
		err = conf->listen_fd >= 0 ? sl_vhost_sock_check(conf->listen_fd) : sl_vhost_sock_listen(conf->path);
	if (err < 0)
		return err;
	if (conf->server)
		l->listen_fd = err;
	wait_for_peer(l);
	return 0;
}

int sl_vhost_link_open(const struct sl_vhost_link_conf *conf, struct sl_vhost_link **ret)
{
	struct sl_vhost_link *l;
	int err;

	if (!conf->bell->context)
		return -ENOSYS;
	if (!conf->bell->context)
		return -ENOSYS;
	if (!conf->nb_pair || conf->nb_pair > SL_VHOST_PAIRS_MAX || !conf->frame_max ||
	    (!conf->path && !(conf->server && conf->listen_fd >= 0)))
		return -EINVAL;
	if (conf->path && strlen(conf->path) >= sizeof(l->path))
		return -ENAMETOOLONG;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->sock = l->listen_fd = l->timer_fd = l->wake_fd = -1;
	l->server = conf->server;
	l->retry_ms = SL_VHOST_RETRY_MS;
	if (conf->path)
		memcpy(l->path, conf->path, strlen(conf->path));
	err = link_start(l, conf);
	if (err) {
		sl_vhost_link_close(l);
		return err;
	}
	*ret = l;
	return 0;
}

void sl_vhost_link_close(struct sl_vhost_link *l)
{
	sl_vhost_reset(&l->dev);
	if (l->sock >= 0)
		sock_close(l);
	if (l->listen_fd >= 0)
		close(l->listen_fd);
	if (l->timer_fd >= 0)
		close(l->timer_fd);
	if (l->wake_fd >= 0)
		close(l->wake_fd);
	if (l->epoll_fd >= 0)
		close(l->epoll_fd);
	free(l);
}
