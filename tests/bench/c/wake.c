/* SPDX-License-Identifier: Apache-2.0 */
/* Receivers that sleep: how long waking takes, and what a chain of instances costs when nobody polls for nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "rig.h"

enum { WAKE_MAX = 1 << 16 };

static int by_value(const void *a, const void *b)
{
	return *(const float *)a < *(const float *)b ? -1 : *(const float *)a > *(const float *)b;
}

static void bell_ring(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != sizeof(one))
		rig_fail("ring");
}

static void bell_wait(int fd)
{
	uint64_t nb;

	if (read(fd, &nb, sizeof(nb)) != sizeof(nb))
		rig_fail("wait");
}

static bool stopped(const struct rig *r)
{
	return sl_peek_u64((const __u64 *)&r->shared->stop.v);
}

/* Ping-pong for r->seconds; the median time from one side to the other is half of the median round. */
static void ping_pong(struct rig *r, unsigned i, struct sl_edge *e, void (*send)(struct rig *, unsigned, struct sl_edge *),
		      void (*wait)(struct rig *, unsigned, struct sl_edge *))
{
	float *took = calloc(WAKE_MAX, sizeof(*took));
	unsigned nb = 0;
	uint64_t end;

	if (!took)
		rig_fail("memory");
	rig_meet(r, 2);
	for (end = sl_now_ns() + (uint64_t)(r->seconds * 1e9); i ? !stopped(r) : sl_now_ns() < end && nb < WAKE_MAX; nb++) {
		uint64_t begin = sl_now_ns();

		if (!i)
			send(r, i, e);
		wait(r, i, e);
		if (i)
			send(r, i, e);
		else
			took[nb] = (float)(sl_now_ns() - begin);
	}
	if (i)
		return;
	sl_post_u64((__u64 *)&r->shared->stop.v, 1);
	send(r, i, e);
	bell_ring(r->bell[1]);
	qsort(took, nb, sizeof(*took), by_value);
	printf("%.1f\n", (double)took[nb / 2] / 2);
	fflush(stdout);
}

static void bare_send(struct rig *r, unsigned i, struct sl_edge *e)
{
	(void)e;
	bell_ring(r->bell[!i]);
}

static void bare_wait(struct rig *r, unsigned i, struct sl_edge *e)
{
	(void)e;
	bell_wait(r->bell[i]);
}

static void bare_side(struct rig *r, unsigned i, void *arg)
{
	(void)arg;
	ping_pong(r, i, NULL, bare_send, bare_wait);
}

void bench_eventfd(struct rig *r)
{
	rig_run(r, 2, bare_side, NULL);
}

static void edge_send(struct rig *r, unsigned i, struct sl_edge *e)
{
	uint64_t id = 1;

	(void)i;
	sl_link_reap(e->up[0]);
	rig_send(r, e, &id, 1);
	sl_signal_vm(e);
}

static void edge_wait(struct rig *r, unsigned i, struct sl_edge *e)
{
	struct sl_request_packet p;
	uint32_t seq;

	while (!sl_link_recv(e->up[0], &p, 1, &seq)) {
		if (i && stopped(r))
			return;
		sl_edge_sleep_set(e, true);
		if (!sl_edge_pending(e))
			bell_wait(r->bell[i]);
		sl_edge_sleep_set(e, false);
	}
	sl_link_complete(e->up[0], seq, 1, SL_COMPLETED);
}

static void edge_side(struct rig *r, unsigned i, void *arg)
{
	ping_pong(r, i, rig_attach(r, arg, i ? SL_BACK : SL_FRONT, 0), edge_send, edge_wait);
}

void bench_wakeup(struct rig *r)
{
	struct rig_edge edge;

	rig_edge_make(r, &edge, SL_LAYER_USER, 1);
	rig_run(r, 2, edge_side, &edge);
}

/* --- chain: process 0 sends, 1 ... hops - 1 copy from edge to edge, process `hops` takes --- */

struct chain {
	unsigned hops;
	struct rig_edge edge[15];
};

/* Takes what has come and sends it on; out NULL: it has arrived. Leaves in the ring what the next edge has no room for. */
static uint32_t forward(struct rig *r, struct sl_edge *in, struct sl_edge *out)
{
	struct sl_request_packet p[RIG_BURST];
	uint32_t seq, nb, room = out ? sl_min(sl_link_room(out->up[0]), out->nb_free_small) : RIG_BURST;

	nb = sl_link_recv(in->up[0], p, sl_min(room, (uint32_t)RIG_BURST), &seq);
	for (uint32_t i = 0; i < nb; i++) {
		struct sl_request_packet q = {.request_id = p[i].request_id, .op = SL_OP_DATA, .length = r->len};
		struct sl_buf buf;

		if (!out) {
			rig_payload_read(r, sl_payload(in, &p[i]));
			continue;
		}
		if (sl_buf_alloc(out, r->len, &buf))
			abort();
		memcpy(buf.data, sl_payload(in, &p[i]), r->len);
		if (sl_route_request(out->up[0], &q, &buf, NULL))
			abort();
	}
	if (nb)
		sl_link_complete(in->up[0], seq, nb, SL_COMPLETED);
	return nb;
}

static void chain_sleep(struct rig *r, unsigned i, struct sl_edge *in, struct sl_edge *out)
{
	struct rig_word *stop = &r->shared->stop;

	if (in)
		sl_edge_sleep_set(in, true);
	if (out) {
		/* also for a slot or ring space: a forwarder's next edge may be full */
		sl_post_u32(&out->self->sleeping, SL_SLEEP_ENTRIES | SL_SLEEP_COMPLETIONS);
		sl_full_fence();
	}
	if (!(in && (!out || sl_link_room(out->up[0])) && sl_edge_pending(in)) &&
	    !(out && sl_link_has_completions(out->up[0])) && !sl_peek_u64((__u64 *)&stop->v))
		bell_wait(r->bell[i]);
	if (in)
		sl_edge_sleep_set(in, false);
	if (out)
		sl_edge_sleep_set(out, false);
}

static void chain_loop(struct rig *r, unsigned i, struct sl_edge *in, struct sl_edge *out)
{
	uint64_t arrived = 0, next = 1, end = sl_now_ns() + (uint64_t)(r->seconds * 1e9);

	while (!stopped(r)) {
		uint32_t work = out ? sl_link_reap(out->up[0]) : 0;
		uint32_t moved = in ? forward(r, in, out) : rig_send(r, out, &next, RIG_BURST);

		arrived += moved;
		if (in)
			sl_signal_vm(in);
		if (out)
			sl_signal_vm(out);
		if (!out && sl_now_ns() > end)
			sl_post_u64((__u64 *)&r->shared->stop.v, 1);
		else if (!moved && !work)
			chain_sleep(r, i, in, out);
	}
	if (!out)
		r->shared->result[0].v = arrived;
	for (unsigned k = 0; k < sl_nb(r->bell); k++)
		bell_ring(r->bell[k]);
}

static void chain_side(struct rig *r, unsigned i, void *arg)
{
	struct chain *c = arg;
	struct sl_edge *in = i ? rig_attach(r, &c->edge[i - 1], SL_BACK, i - 1) : NULL;
	struct sl_edge *out = i < c->hops ? rig_attach(r, &c->edge[i], SL_FRONT, i) : NULL;
	struct rusage before, after;
	double used;

	rig_meet(r, c->hops + 1);
	getrusage(RUSAGE_SELF, &before);
	chain_loop(r, i, in, out);
	getrusage(RUSAGE_SELF, &after);
	used = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1e9 +
	       (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) * 1e3;
	__atomic_add_fetch(&r->shared->ball.v, (uint64_t)used, __ATOMIC_RELAXED);
}

/* Prints the CPU time in ns that all processes together spent for one entry. */
void bench_chain(struct rig *r, unsigned hops)
{
	struct chain c = {.hops = hops};

	for (unsigned i = 0; i < hops; i++)
		rig_edge_make(r, &c.edge[i], (uint8_t)(SL_LAYER_USER + i), 1);
	rig_run(r, hops + 1, chain_side, &c);
	printf("%.1f\n", (double)r->shared->ball.v / (double)sl_max(r->shared->result[0].v, (uint64_t)1));
}
