/* SPDX-License-Identifier: Apache-2.0 */
/* The router's vhost-user port as a program of its own, for tests against other implementations of the front-end:
 *
 *   test_vhost_peer echo SOCKET...     sends back what each guest sent, addresses exchanged
 *   test_vhost_peer pass SOCKET SOCKET from each guest straight to the other
 *   test_vhost_peer take SOCKET...     takes and counts
 *
 * A socket is "PATH" (connect) or "PATH,server"; ",pairs=N" for more queue pairs; ",poll" never sleeps; ",sealed" maps
 * no memory that can be cut short. Each line on standard input is answered by one line of counters, all sockets in turn;
 * it ends with standard input. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/atomic.h"
#include "router/ports/vhost.h"

enum {
	PORTS_MAX = 4,
	PAUSES = 64,   /* while polling: until a ring that was emptied is looked at again */
};

struct peer {
	struct sl_port *port[PORTS_MAX];
	uint32_t nb_port;
	const char *mode;
	bool poll;
	struct sl_tap_bufs bufs;
	struct sl_bell bell;
};

static int port_open(struct peer *p, char *text)
{
	struct sl_port_vhost_conf conf = { .listen_fd = -1, .nb_pair = 1, .unsealed_ok = true, .bufs = &p->bufs,
					    .bell = &p->bell };
	char *word = strtok(text, ",");

	conf.path = word;
	while ((word = strtok(NULL, ","))) {
		if (!strcmp(word, "server"))
			conf.server = true;
		else if (!strcmp(word, "poll"))
			p->poll = true;
		else if (!strcmp(word, "sealed"))
			conf.unsealed_ok = false;
		else if (sscanf(word, "pairs=%hu", &conf.nb_pair) != 1)
			return -EINVAL;
	}
	return sl_port_vhost_open(&conf, &p->port[p->nb_port++]);
}

static void addresses_exchange(struct sl_frame *f)
{
	uint8_t *b = f->seg[0].iov_base, save[6];

	memcpy(save, b, 6);
	memcpy(b, b + 6, 6);
	memcpy(b + 6, save, 6);
}

static void pass(struct peer *p)
{
	uint32_t from, pair;
	bool more;

	for (from = 0; from < 2; from++) {
		struct sl_vhost *src = sl_port_vhost_device(p->port[from]), *dst = sl_port_vhost_device(p->port[!from]);

		for (pair = 0; pair < src->conf.nb_pair; pair++)
			if (sl_vhost_ring_is_up(dst, 2 * pair))
				sl_vq_pass(&src->ring[2 * pair + 1].vq, &dst->ring[2 * pair].vq, SL_BURST, &more);
	}
}

static void port_serve(struct peer *p, uint32_t i)
{
	struct sl_frame frames[SL_BURST];
	uint32_t n = p->port[i]->ops->rx_burst(p->port[i], frames, SL_BURST), k;

	if (p->mode[0] != 'e' || !n)
		return;
	for (k = 0; k < n; k++)
		addresses_exchange(&frames[k]);
	for (k = 0; k < n; k++)   /* past each that is refused, and counted */
		k += p->port[i]->ops->tx_burst(p->port[i], frames + k, n - k);
}

/* False: standard input ended. */
static bool counters_print(struct peer *p)
{
	char line[64];
	uint32_t i, c;

	if (read(STDIN_FILENO, line, sizeof(line)) <= 0)
		return false;
	for (i = 0; i < p->nb_port; i++)
		for (c = 0; c < SL_VHOST_COUNT_NB; c++)
			printf("%u.%s=%llu ", i, sl_vhost_count_name(c),
			       (unsigned long long)sl_port_vhost_device(p->port[i])->count[c]);
	printf("\n");
	fflush(stdout);
	return true;
}

/* Without waiting: rings are looked at all the time, sockets and standard input from time to time. */
static void run_polling(struct peer *p)
{
	struct pollfd in = { STDIN_FILENO, POLLIN, 0 };
	struct sl_vq_buf bufs[SL_BURST];
	uint32_t turns, i, k, n, turn = 0;
	bool more;

	for (i = 0; i < SL_BURST; i++)
		bufs[i].data = p->bufs.data[i] + SL_VLAN_MAX;
	for (turns = 0;; turns++) {
		if (turns % 4096 == 0) {
			if (poll(&in, 1, 0) > 0 && !counters_print(p))
				return;
			for (i = 0; i < p->nb_port; i++)   /* messages only */
				p->port[i]->ops->rx_burst(p->port[i], NULL, 0);
			for (i = 0; i < p->nb_port; i++)   /* kicks would cost the guests a system call each */
				sl_vhost_disarm(sl_port_vhost_device(p->port[i]));
		}
		for (i = 0; i < p->nb_port && p->mode[0] != 'p'; i++) {
			struct sl_vhost *d = sl_port_vhost_device(p->port[i]);

			n = sl_vhost_recv(d, bufs, SL_BURST, &turn, &more);
			/* a guest that is being watched loses the lines that it fills */
			for (k = 0; n < SL_BURST && k < PAUSES; k++)
				sl_relax();
			for (k = 0; k < n && p->mode[0] == 'e'; k++) {
				struct sl_frame f = { .seg = {{ bufs[k].data, bufs[k].len }}, .nb_seg = 1, .len = bufs[k].len };

				addresses_exchange(&f);
				sl_vhost_send(d, turn - 1, f.seg, 1, f.len);
			}
			sl_vhost_flush(d);
		}
		if (p->mode[0] == 'p')
			pass(p);
	}
}

static void run(struct peer *p)
{
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC), i, n;
	struct epoll_event ev[PORTS_MAX + 1];

	for (i = 0; i <= (int)p->nb_port; i++) {
		ev[0] = (struct epoll_event){ .events = EPOLLIN, .data.u32 = (uint32_t)i };
		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, i < (int)p->nb_port ? p->port[i]->fd : STDIN_FILENO, ev))
			return;
	}
	for (;;) {
		n = epoll_wait(epoll_fd, ev, PORTS_MAX + 1, -1);
		for (i = 0; i < n; i++) {
			if (ev[i].data.u32 < p->nb_port)
				port_serve(p, ev[i].data.u32);
			else if (!counters_print(p))
				return;
		}
	}
}

int main(int argc, char **argv)
{
	static struct peer p;
	int i;

	if (argc < 3 || argc > 2 + PORTS_MAX)
		return 2;
	p.mode = argv[1];
	if (sl_bell_open(&p.bell) || sl_guard_install())
		return 1;
	for (i = 2; i < argc; i++)
		if (port_open(&p, argv[i]))
			return 1;
	if (p.poll || p.mode[0] == 'p')
		run_polling(&p);
	else
		run(&p);
	for (i = 0; i < (int)p.nb_port; i++)
		sl_port_close(p.port[i]);
	return 0;
}
