/* SPDX-License-Identifier: Apache-2.0 */
/* Two threads on one region, both sending and receiving as fast as they can: each entry once, in order, its payload whole, no wake-up lost.
 *
 * Both edges see the region at one address (mmap is wrapped), so that ThreadSanitizer knows that it is the same memory.
 * usage: test_ring_stress [ENTRIES]    entries of both directions together; needs no test library, so any machine can run it */
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "pair.h"

enum { ENTRIES = 1000000, WORDS = 8, SPINS = 50, LOST_MS = 20000 };

/* --- one mapping for both --- */

static struct {
	int fd;
	void *base;
	unsigned users;
} shared = {.fd = -1};

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);
int __real_munmap(void *at, size_t len);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);
int __wrap_munmap(void *at, size_t len);

void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	if (fd < 0)
		return __real_mmap(at, len, prot, flags, fd, off);
	if (!shared.users++) {
		shared.base = __real_mmap(at, len, prot, flags, fd, off);
		shared.fd = fd;
	}
	return fd == shared.fd ? shared.base : MAP_FAILED;
}

int __wrap_munmap(void *at, size_t len)
{
	return at == shared.base && --shared.users ? 0 : __real_munmap(at, len);
}

/* --- a thread --- */

struct side {
	struct sl_edge *edge;
	struct sl_link *link;
	int bell;
	bool rests;               /* sleeps now and then although it has something to send */
	uint64_t sent, received, all, sleeps;
	uint64_t rng;
	const char *wrong;
};

static uint64_t draw(struct side *s)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return s->rng;
}

static uint64_t word_of(uint64_t number, unsigned i)
{
	return (number + i) * 0x9e3779b97f4a7c15u;
}

static bool one_send(struct side *s)
{
	struct sl_request_packet p = {.op = SL_OP_DATA, .length = WORDS * 8, .request_id = s->sent + 1};
	struct sl_buf buf;
	uint64_t *to;

	if (!sl_link_room(s->link) || sl_buf_alloc(s->edge, p.length, &buf))
		return false;
	to = (void *)buf.data;
	for (unsigned i = 0; i < WORDS; i++)
		to[i] = word_of(p.request_id, i);
	if (sl_route_request(s->link, &p, &buf, NULL))
		s->wrong = "no room where there was some";
	s->sent++;
	return true;
}

static void one_check(struct side *s, const struct sl_request_packet *p)
{
	const uint64_t *from = (const void *)sl_payload(s->edge, p);

	if (p->request_id != s->received + 1)
		s->wrong = "an entry is missing, twice or out of order";
	for (unsigned i = 0; i < WORDS; i++)
		if (from[i] != word_of(p->request_id, i))
			s->wrong = "a payload changed";
	s->received++;
}

/* Returns the work done. The second half is completed before the first now and then. */
static uint32_t turn(struct side *s)
{
	struct sl_request_packet p[SL_BURST];
	uint32_t seq = 0, nb = sl_link_recv(s->link, p, SL_BURST, &seq), sent = 0, half = nb / 2;
	uint32_t want = (uint32_t)(draw(s) % SL_BURST);

	for (uint32_t i = 0; i < nb; i++)
		one_check(s, &p[i]);
	if (half && draw(s) % 4 == 0) {
		sl_link_complete(s->link, seq + half, nb - half, SL_COMPLETED);
		sl_link_complete(s->link, seq, half, SL_COMPLETED);
	} else if (nb) {
		sl_link_complete(s->link, seq, nb, SL_COMPLETED);
	}
	nb += sl_link_reap(s->link);
	while (sent < want && s->sent < s->all && one_send(s))
		sent++;
	sl_signal_vm(s->edge);
	return nb + sent;
}

static void sleep_until_rung(struct side *s)
{
	struct pollfd p = {.fd = s->bell, .events = POLLIN};
	uint64_t rung;

	s->sleeps++;
	sl_edge_sleep_set(s->edge, true);
	if (!sl_edge_pending(s->edge) && poll(&p, 1, LOST_MS) == 0)
		s->wrong = "a wake-up was lost";
	if (read(s->bell, &rung, sizeof(rung)) < 0 && errno != EAGAIN)
		s->wrong = "eventfd";
	sl_edge_sleep_set(s->edge, false);
}

static void *run(void *arg)
{
	struct side *s = arg;
	unsigned idle = 0;

	while (!s->wrong && (s->sent < s->all || s->received < s->all)) {
		bool rest = s->received < s->all && (s->sent == s->all || (s->rests && draw(s) % 4096 == 0));

		idle = turn(s) ? 0 : idle + 1;
		if (!rest && idle < SPINS)
			sl_relax();
		else if (!rest)
			sched_yield();        /* the other thread may need this very core */
		else if (s->sent < s->all || idle > SPINS)
			sleep_until_rung(s);
	}
	/* what is still on its way back */
	for (uint64_t end = sl_now_ns() + LOST_MS * 1000000ull; !s->wrong && sl_link_room(s->link) != s->edge->g.ring_cap; turn(s))
		if (sl_now_ns() > end)
			s->wrong = "a completion was lost";
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t all = argc > 1 ? strtoull(argv[1], NULL, 0) : ENTRIES, begin = sl_now_ns(), took;
	struct sl_region small = {.ring_cap = 64, .nb_small = 96, .nb_big = 1};
	struct side s[2];
	struct pair p;
	pthread_t t[2];

	pair_open(&p, &small, NULL, NULL);
	s[0] = (struct side){.edge = p.front.edge, .all = all / 2, .rng = 88172645463325252u};
	s[1] = (struct side){.edge = p.back.edge, .all = all / 2, .rng = 1234567891u, .rests = true};
	for (unsigned i = 0; i < 2; i++) {
		/* pair.c hands each side its own eventfd as the peer's: so each rings that and the other one listens there */
		s[i].bell = i ? p.front.doorbell : p.back.doorbell;
		s[i].link = s[i].edge->up[0];
	}
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, run, &s[i]);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	for (unsigned i = 0; i < 2; i++) {
		if (!s[i].wrong && (s[i].edge->nb_free_small != small.nb_small || s[i].edge->nb_free_big != small.nb_big))
			s[i].wrong = "a slot did not come back";
		if (s[i].wrong) {
			printf("side %u: %s (sent %" PRIu64 ", received %" PRIu64 ")\n", i, s[i].wrong, s[i].sent, s[i].received);
			return 1;
		}
	}
	took = sl_now_ns() - begin;
	printf("%" PRIu64 " entries in %.1f s (%.1f ns each), every payload whole, slept %" PRIu64 " times\n", all / 2 * 2,
	       (double)took / 1e9, (double)took / (double)(all | 1), s[0].sleeps + s[1].sleeps);
	pair_close(&p);
	return 0;
}
