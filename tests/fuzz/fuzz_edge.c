/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile peer on an edge: it owns its half of the region and writes what it likes, where it likes, between the calls of the honest side
 * (libFuzzer decides what) or while they run (SL_FUZZ_RACE: a thread that writes all the time).
 *
 * The honest side's mapping is watched: outside of the region lie pages without access; inside, ASan has poisoned everything but the
 * rings, the peers' lines and the hostile peer's arena (the own arena is opened only for the moment in which the layer writes into a
 * slot of its own). The hostile side writes through a mapping of its own. A call that takes more than 100 ms of processor time aborts. */
#include <inttypes.h>
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "pair.h"

enum { FLOWS_KEPT = 32, HANG_NS = 100000000, ZONE = 1 << 20, RING_CAP = 64 };

/* An honest side and the peer that it has */
static struct rig {
	struct pair p;                 /* the other side's edge is only used for its addresses */
	struct pair_side *me, *peer;
	struct sl_edge *e;
	struct sl_ring *to_me, *from_me;   /* as the hostile side sees them */
	struct sl_request_packet *entries;
	struct sl_completion *completions;
	uint8_t *raw;                  /* the whole region, writable by the hostile side */
	uint64_t arena, arena_len;     /* the hostile peer's */
	struct sl_route_page page;
	struct sl_flow *flow[FLOWS_KEPT];
	uint32_t nb_flows, incarnation;
} rigs[2], *rig;

static struct {
	uint64_t entries, bytes, calls, relinks, sum;
} total;

/* --- the region between red zones --- */

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off);

void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	uint8_t *zones;

	if (fd < 0)
		return __real_mmap(at, len, prot, flags, fd, off);
	zones = __real_mmap(NULL, len + 2 * ZONE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return zones == MAP_FAILED ? zones : __real_mmap(zones + ZONE, len, prot, flags | MAP_FIXED, fd, off);
}

static void own_arena(bool open)
{
	uint8_t *at = rig->e->base + rig->e->arena_off;

	if (open)
		ASAN_UNPOISON_MEMORY_REGION(at, rig->e->g.arena_len);
	else
		ASAN_POISON_MEMORY_REGION(at, rig->e->g.arena_len);
}

/* --- the honest layer: reads all that it is shown, answers, ends flows --- */

static void flow_drop(struct sl_flow *f)
{
	for (uint32_t i = 0; i < rig->nb_flows; i++)
		if (rig->flow[i] == f)
			rig->flow[i--] = rig->flow[--rig->nb_flows];
}

static void flow_keep(struct sl_flow *f)
{
	if (rig->nb_flows < FLOWS_KEPT)
		rig->flow[rig->nb_flows++] = f;
}

static void flow_say(struct sl_flow *f, uint32_t want, uint32_t flags)
{
	struct sl_buf buf;
	uint32_t room = sl_flow_reserve(f, want, &buf);

	if (!room)
		return;
	own_arena(true);
	memset(buf.data, 0x5a, room);
	own_arena(false);
	sl_flow_commit(f, &buf, room, flags);
}

static int on_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	const uint8_t *m = msg;

	for (uint32_t i = 0; i < len; i++)
		total.sum += m[i];
	if (len && m[0] % 8 == 0)
		return -SL_ERROR_REFUSED;
	f->user = (void *)(uintptr_t)(len ? m[0] : 0);
	if (!fin)
		flow_keep(f);
	return 0;
}

static uint32_t on_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	uint32_t taken = (uintptr_t)f->user % 4 == 1 ? len / 2 : (uintptr_t)f->user % 4 == 2 ? 0 : len;

	for (uint32_t i = 0; i < len; i += i + 64 < len ? 61 : 1)   /* the last bytes, too */
		total.sum += p[i];
	total.bytes += len;
	if ((uintptr_t)f->user % 16 == 5)
		flow_say(f, len, 0);
	if ((uintptr_t)f->user % 16 == 7) {
		flow_drop(f);
		sl_flow_reset(f, SL_ERROR_CLIENT);
	}
	return taken;
}

static void on_fin(struct sl_flow *f)
{
	if ((uintptr_t)f->user % 2)
		sl_flow_fin(f);
}

static void on_writable(struct sl_flow *f) { flow_say(f, 100, 0); }
static void on_over(struct sl_flow *f, enum sl_request_status status) { (void)status; flow_drop(f); }
static void on_drain(struct sl_flow *f) { sl_flow_fin(f); }

static bool on_orphaned(struct sl_flow *f) { (void)f; return false; }

static const struct sl_flow_ops ops = {
	.open = on_open, .data = on_data, .fin = on_fin, .writable = on_writable, .over = on_over, .drain = on_drain,
	.orphaned = on_orphaned,
};

static int bell_of(void *user, uint16_t vm_id)
{
	(void)vm_id;
	return ((struct pair_side *)user)->doorbell;
}

/* --- set-up --- */

static void relink(void)
{
	rig->page.routes[0].incarnation = ++rig->incarnation;
	sl_edge_routes_set(rig->e, &rig->page, bell_of);
	for (uint32_t i = 0; i < RING_CAP && rig->incarnation % 8; i++) {   /* now and then it forgets to */
		sl_post_u64((__u64 *)(void *)&rig->entries[i].epoch, 0);
		sl_post_u64((__u64 *)(void *)&rig->completions[i], 0);
	}
	sl_publish_u32(&rig->to_me->prod, 0);
	sl_publish_u32(&rig->from_me->cons, 0);
	sl_publish_u64(&rig->to_me->prod_pair, (uint64_t)rig->incarnation << 32 | rig->e->incarnation);
	sl_publish_u64(&rig->from_me->cons_pair, (uint64_t)rig->e->incarnation << 32 | rig->incarnation);
	total.relinks++;
}

static void rig_open(struct rig *r, bool back)
{
	struct sl_region small = {.ring_cap = RING_CAP, .nb_small = 16, .nb_big = 4, .big_len = 4096};
	struct sl_link *theirs;

	rig = r;
	pair_open(&r->p, &small, &ops, &ops);
	r->me = back ? &r->p.back : &r->p.front;
	r->peer = back ? &r->p.front : &r->p.back;
	r->e = r->me->edge;
	r->raw = r->peer->edge->base;
	r->page = back ? r->p.to_front : r->p.to_back;
	r->incarnation = 100;
	theirs = &r->peer->edge->links[0];
	r->to_me = theirs->tx.ring;
	r->from_me = theirs->rx.ring;
	r->entries = theirs->tx.entries;
	r->completions = theirs->rx.completions;
	r->arena = r->peer->edge->arena_off;
	r->arena_len = r->e->g.arena_len;
	ASAN_POISON_MEMORY_REGION(r->e->base, 4096);   /* the header is copied at attach, once */
	own_arena(false);
}

/* --- the hostile side --- */

static uint64_t mix(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* The lap in which the other side takes number n for there */
static uint8_t lap_of(uint32_t n)
{
	return n & RING_CAP ? 2 : 1;
}

/* Fields as the contract wants them, but for those that `lies` names */
static void entry_forge(struct sl_request_packet *p, uint32_t n, uint64_t *x, uint8_t lies)
{
	/* mostly data for flows that are open; an OPEN of a fresh one; seldom what ends them */
	static const uint8_t ops_of[] = {SL_OP_OPEN, SL_OP_OPEN, SL_OP_RESET, SL_OP_DRAIN, SL_OP_DATA, SL_OP_DATA, SL_OP_DATA, SL_OP_DATA};
	uint64_t r = mix(x);
	uint8_t op = r % 256 == 0 ? SL_OP_WINDOW : ops_of[r % 32 < 7 ? r % 32 : 7];
	uint32_t id = (uint32_t)(1u << 20 | (r >> 40) % 4096);

	if (op != SL_OP_OPEN && rig->nb_flows)
		id = rig->flow[(r >> 40) % rig->nb_flows]->flow_id;
	*p = (struct sl_request_packet){
		.request_id = r | 1, .offset = (uint32_t)(rig->arena + (r >> 8) % rig->arena_len / 64 * 64), .length = (uint32_t)(r >> 32) % 128,
		.flow_id = id, .epoch = rig->incarnation, .lap = lap_of(n), .next_vm_id = rig->e->vm_id,
		.protocol_layer = rig->e->layer, .op = op, .flags = (uint8_t)((r >> 20) % 16 ? 0 : SL_F_FIN), .status = (uint16_t)(op == SL_OP_RESET ? (r >> 24) % 10 : 0),
	};
	if (p->op == SL_OP_DATA && (uint64_t)p->offset + p->length > rig->arena + rig->arena_len)
		p->offset = (uint32_t)rig->arena;
	if (lies & 1)
		p->offset = (uint32_t)mix(x);
	if (lies & 2)
		p->length = (uint32_t)mix(x) >> mix(x) % 32;
	if (lies & 4)
		p->flow_id = (uint32_t)mix(x);
	if (lies & 8)
		p->epoch += (uint32_t)mix(x) % 3;
	if (lies & 16)
		memcpy((uint8_t *)p + 16 + mix(x) % 9, &(uint64_t){mix(x)}, 8);
	if ((lies & 16) && mix(x) % 4)   /* or it would not even be looked at */
		p->lap = lap_of(n);
	if (lies & 32)   /* the edges of the arena */
		p->offset = (uint32_t)(rig->arena + rig->arena_len - mix(x) % 200);
	if (lies & 64)
		p->offset = (uint32_t)(rig->arena - mix(x) % 200);
}

static void entries_forge(uint32_t nb, uint64_t x, uint8_t lies, uint8_t rarely)
{
	uint32_t next = rig->e->links[0].rx.cons;

	for (uint32_t n = next; n != next + nb; n++) {
		struct sl_request_packet p;

		entry_forge(&p, n, &x, mix(&x) % (rarely + 1u) ? 0 : lies);
		rig->entries[n & (RING_CAP - 1)] = p;
	}
}

/* All that it has taken, honestly completed: so that the other side goes on */
static void complete_all(uint32_t lie)
{
	const struct sl_tx *tx = &rig->e->links[0].tx;
	uint32_t cprod = tx->cprod, nb = tx->published - tx->oldest;

	if (!nb)
		return;
	rig->completions[cprod & (RING_CAP - 1)] = (struct sl_completion){
		.seq = tx->oldest + (lie & 3), .count = (uint16_t)(nb + (lie >> 2 & 3)), .status = (uint8_t)(SL_COMPLETED + (lie >> 4 & 7)),
		.lap = lap_of(cprod)};
}

static void word_set(uint32_t which, uint64_t v)
{
	const struct sl_link *l = &rig->e->links[0];
	const struct sl_peer *line = l->peer;
	struct sl_peer *peer = (void *)(rig->raw + ((const uint8_t *)line - rig->e->base));
	uint64_t span = rig->e->g.arenas_off - rig->e->g.peers_off;

	switch (which % 10) {
	case 0: sl_publish_u32(&rig->to_me->prod, (uint32_t)v); break;
	case 1: sl_publish_u64(&rig->to_me->prod_pair, v); break;
	case 2: sl_publish_u32(&rig->from_me->cons, (uint32_t)v); break;
	case 3: rig->completions[l->tx.cprod % RING_CAP].lap = (uint8_t)(v % 4); break;
	case 4: sl_publish_u64(&rig->from_me->cons_pair, v); break;
	case 5: sl_publish_u32(&peer->sleeping, (uint32_t)v); break;
	case 6: sl_publish_u32(&peer->depth, (uint32_t)v); break;
	case 7: memcpy(&rig->completions[v % RING_CAP], &v, 8); break;
	case 8: rig->entries[(l->rx.cons + (v >> 8) % 4) % RING_CAP].lap = (uint8_t)(v % 4); break;
	default:   /* nothing stops it from writing into our half either */
		sl_publish_u32((void *)(rig->raw + rig->e->g.peers_off + (v >> 32) % span / 4 * 4), (uint32_t)v);
	}
}

/* --- the honest side's calls --- */

static void flow_act(uint32_t what)
{
	struct sl_flow *f = rig->nb_flows ? rig->flow[(what >> 3) % rig->nb_flows] : NULL;

	if (!f && rig->e->side == SL_FRONT)
		what = 0;
	else if (!f)
		return;
	switch (what % 8) {
	case 0:
		if (rig->e->side == SL_BACK)
			return;
		own_arena(true);
		if (!sl_flow_open(rig->e, 0, "hostile", 7, what >> 16 & SL_F_FIN, (void *)(uintptr_t)(what >> 8), &f))
			flow_keep(f);
		own_arena(false);
		break;
	case 1: flow_say(f, what >> 8 & 0x1fff, what >> 24 & SL_F_FIN); break;
	case 2: sl_flow_fin(f); break;
	case 3: flow_drop(f); sl_flow_reset(f, SL_ERROR_CLIENT); break;
	case 4: sl_flow_resume(f); break;
	case 5: f->user = (void *)(uintptr_t)(what >> 8); break;
	case 6: sl_flow_drain(f); break;
	default: sl_select_best_vm(rig->e);
	}
}

static void turn(void)
{
	struct sl_link *l = &rig->e->links[0];
	uint32_t cons = l->rx.cons;

	sl_edge_poll(rig->e);
	total.entries += l->rx.cons - cons;
	sl_edge_turn_end(rig->e);
	total.calls++;
	if (l->quarantined)
		relink();
}

static void slots_check(void)
{
	const struct sl_edge *e = rig->e;

	/* every slot is free or in a ring: none lost, none twice */
	uint32_t out = 0;

	for (uint32_t n = e->links[0].tx.oldest; n != e->links[0].tx.prod; n++)
		out += (e->links[0].tx.sent[n & (RING_CAP - 1)] & ~(uint32_t)SL_SENT_OPEN) != 0;
	if (e->nb_free_small + e->nb_free_big + out != e->g.nb_small + e->g.nb_big)
		abort();
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void report(void)
{
	printf("%" PRIu64 " hostile entries taken in %" PRIu64 " turns, %" PRIu64 " peers shut out or replaced, %" PRIu64 " bytes of payload read\n",
	       total.entries, total.calls, total.relinks, total.bytes);
}

static void rigs_open(void)
{
	if (rigs[0].e)
		return;
	rig_open(&rigs[0], false);
	rig_open(&rigs[1], true);
	atexit(report);
}

#ifndef SL_FUZZ_RACE
struct input {
	const uint8_t *at, *end;
};

static uint32_t take(struct input *in, unsigned bytes)
{
	uint32_t v = 0;

	for (; bytes && in->at < in->end; bytes--)
		v = v << 8 | *in->at++;
	return v;
}

static void step(struct input *in)
{
	uint32_t op = take(in, 1);
	uint64_t x;

	switch (op % 12) {
	case 0: case 1: case 2:
		x = take(in, 4) * 0x9e3779b97f4a7c15u | 1;
		op = take(in, 1);
		entries_forge(op % (SL_BURST + 1), x, op % 5 ? 0 : (uint8_t)take(in, 1), (uint8_t)take(in, 1));
		turn();
		break;
	case 3:
		op = take(in, 1);
		word_set(op, (uint64_t)take(in, 4) << 32 | take(in, 4));
		break;
	case 4:
		op = take(in, 1);
		word_set(op, op & 16 ? (uint64_t)rig->incarnation << 32 | rig->e->incarnation : take(in, 1));
		break;
	case 5: complete_all(take(in, 1) & (op > 200 ? 0xff : 0)); break;
	case 6: case 7: flow_act(take(in, 4)); break;
	case 8: turn(); break;
	case 9:
		sl_edge_sleep_set(rig->e, true);
		sl_edge_pending(rig->e);
		sl_edge_sleep_set(rig->e, false);
		break;
	case 10:
		if (op > 200)
			relink();
		break;
	default:
		if (op > 220) {
			sl_edge_peer_gone(rig->e, rig->page.routes[0].vm_id);
			relink();
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct input in = {data, data + len};
	uint64_t begin = cpu_ns();

	rigs_open();
	rig = &rigs[take(&in, 1) & 1];
	relink();                              /* each input starts on a fresh pairing */
	while (in.at < in.end)
		step(&in);
	turn();
	slots_check();
	if (cpu_ns() - begin > HANG_NS)
		abort();
	return 0;
}
#else
static bool stop;

static void *mutate(void *arg)
{
	uint64_t x = 0x2545f4914f6cdd1du;

	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		uint64_t r = mix(&x);

		if (r % 64 == 0)
			word_set((uint32_t)(r >> 8) % 10, mix(&x));
		else if (r % 4 == 0)   /* a field of an entry that is being read */
			__atomic_store_n((uint32_t *)(void *)&rig->entries[(r >> 8) % RING_CAP] + (r >> 20) % 8, (uint32_t)mix(&x),
					 __ATOMIC_RELAXED);
		else                   /* payload under the reader's eyes */
			rig->raw[rig->arena + (r >> 8) % rig->arena_len] = (uint8_t)r;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t want = argc > 1 ? strtoull(argv[1], NULL, 0) : 100000, x = 88172645463325252u, slowest = 0;

	for (unsigned side = 0; side < 2; side++) {
		pthread_t t;

		rigs_open();
		rig = &rigs[side];
		relink();
		__atomic_store_n(&stop, false, __ATOMIC_RELAXED);
		pthread_create(&t, NULL, mutate, NULL);
		while (total.entries < want / 2 * (side + 1)) {
			uint64_t begin = cpu_ns();

			if (mix(&x) % 8 == 0)          /* else a pair that was overwritten keeps the ring down for good */
				relink();
			entries_forge((uint32_t)mix(&x) % SL_BURST + 1, mix(&x), (uint8_t)mix(&x), 200);
			complete_all(0);
			flow_act((uint32_t)mix(&x));
			turn();
			begin = cpu_ns() - begin;
			slowest = sl_max(slowest, begin);
			if (begin > HANG_NS)
				abort();
		}
		__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
		pthread_join(t, NULL);
		slots_check();
	}
	printf("slowest turn %" PRIu64 " us; ", slowest / 1000);
	return 0;
}
#endif
