/* SPDX-License-Identifier: Apache-2.0 */
/* Each word that a peer may write is read once for each decision: what was checked is what is used.
 *
 * Twice over: the accessors of base/atomic.h count (SL_COUNT_READS), and on x86-64 the processor does: the rings lie in pages without
 * access, so that every instruction that reads them traps and is stepped over one by one. The first finds a second look in the source, the
 * second one that the compiler made. Needs no test library. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "pair.h"

enum { SEEN_MAX = 4096, BATCH = 20, PAGE = 4096, BODY = 24, LAST = 8 };

static struct {
	bool on;
	uint32_t off[SEEN_MAX], len[SEEN_MAX];
	unsigned nb;
} source, machine;

static uint8_t *base;                 /* of the reader's mapping */
static size_t first, span;            /* its bytes from the peers' lines to the end of the rings, in whole pages */
static unsigned decisions;

#define CHECK(cond) do { if (!(cond)) { printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); exit(1); } } while (0)

void sl_read_note(const void *p, __u32 len)
{
	size_t off = (size_t)((const uint8_t *)p - base);

	if (!source.on || off < first || off >= first + span || source.nb == SEEN_MAX)
		return;
	source.off[source.nb] = (uint32_t)off;
	source.len[source.nb++] = len;
}

/* --- the processor counts --- */

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define SL_TRAPS 1
enum { TRAP_FLAG = 0x100, FAULT_WRITE = 2 };

static void on_access(int sig, siginfo_t *info, void *context)
{
	ucontext_t *c = context;
	size_t off = (size_t)((uint8_t *)info->si_addr - base);

	if (!machine.on || off < first || off >= first + span) {
		signal(sig, SIG_DFL);
		return;
	}
	if (!(c->uc_mcontext.gregs[REG_ERR] & FAULT_WRITE) && machine.nb < SEEN_MAX)
		machine.off[machine.nb++] = (uint32_t)off;
	mprotect(base + first, span, PROT_READ | PROT_WRITE);
	c->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_step(int sig, siginfo_t *info, void *context)
{
	ucontext_t *c = context;

	(void)sig;
	(void)info;
	c->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
	if (machine.on)
		mprotect(base + first, span, PROT_NONE);
}

static void traps_init(void)
{
	struct sigaction access = {.sa_sigaction = on_access, .sa_flags = SA_SIGINFO};
	struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};

	sigaction(SIGSEGV, &access, NULL);
	sigaction(SIGTRAP, &step, NULL);
}
#else
#define SL_TRAPS 0
static void traps_init(void) {}
#endif

static void count_begin(void)
{
	source.nb = machine.nb = 0;
	source.on = machine.on = true;
	if (SL_TRAPS)
		mprotect(base + first, span, PROT_NONE);
}

static void count_end(void)
{
	source.on = machine.on = false;
	mprotect(base + first, span, PROT_READ | PROT_WRITE);
}

/* --- what is expected --- */

static unsigned source_reads(const void *p)
{
	unsigned n = 0;

	for (unsigned i = 0; i < source.nb; i++)
		n += source.off[i] == (size_t)((const uint8_t *)p - base);
	return n;
}

/* The record at p was read `times` times by the source; and by the machine in pieces that do not overlap. */
static void check_reads(const void *p, uint32_t len, unsigned times)
{
	uint32_t off = (uint32_t)((const uint8_t *)p - base), bits = 0, n = 0;

	CHECK(source_reads(p) == times);
	decisions++;
	if (!SL_TRAPS)
		return;
	for (unsigned i = 0; i < machine.nb; i++) {
		uint32_t at = machine.off[i] - off;

		if (at >= len)
			continue;
		n++;
		CHECK(times != 1 || !(bits & 1u << at));     /* no piece twice */
		bits |= 1u << at;
	}
	/* the width of an access is not known: only these sets of addresses can not overlap. The body of an entry is read in words or two
	 * of them at one go, anything else at one go. */
	if (len == BODY && times)
		CHECK(bits == 0x10101 || bits == 0x10001 || bits == 0x101);
	else
		CHECK(bits == (times ? 1 : 0) && n == times);
}

static void check_total(unsigned times)
{
	CHECK(source.nb == times);
}

static void reader_set(const struct sl_edge *e)
{
	base = e->base;
	first = e->g.peers_off / PAGE * PAGE;
	span = e->g.arenas_off - first;
}

static void entries_send(struct pair *p, unsigned nb)
{
	for (unsigned i = 0; i < nb; i++) {
		struct sl_request_packet r = {.op = SL_OP_DATA, .length = 100, .request_id = i + 1};
		struct sl_buf buf;

		CHECK(!sl_buf_alloc(p->front.edge, 100, &buf));
		CHECK(!sl_route_request(p->front.edge->up[0], &r, &buf, NULL));
	}
	sl_signal_vm(p->front.edge);
}

/* --- decisions --- */

/* An entry is read once: its last word, and if that says that it is there, the rest. */
static void check_entry(const struct sl_request_packet *entry, bool is_there)
{
	check_reads(&entry->epoch, LAST, 1);
	check_reads(entry, BODY, is_there);
}

static void receive(struct pair *p, bool is_first)
{
	struct sl_link *l = p->back.edge->up[0];
	struct sl_request_packet r[BATCH];
	uint32_t seq, cons = l->rx.cons, mask = l->edge->g.ring_cap - 1;

	entries_send(p, BATCH);
	reader_set(p->back.edge);
	count_begin();
	uint32_t nb = sl_link_recv(l, r, BATCH, &seq);
	count_end();
	CHECK(nb == BATCH);
	check_reads(&l->rx.ring->prod_pair, 8, is_first);
	check_reads(&l->rx.ring->prod, 4, 0);
	for (unsigned i = 0; i < BATCH; i++)
		check_entry(&l->rx.entries[(cons + i) & mask], true);
	check_total(is_first + 2 * BATCH);
	count_begin();
	nb = sl_link_recv(l, r, BATCH, &seq);
	count_end();
	CHECK(nb == 0);
	check_entry(&l->rx.entries[(cons + BATCH) & mask], false);
	check_total(1);
	for (unsigned i = 0; i < BATCH; i++)
		sl_link_complete(l, cons + i, 1, i % 2 ? SL_COMPLETED : SL_ERROR);   /* no runs: one completion for each */
}

static void signal_and_reap(struct pair *p, bool is_first)
{
	struct sl_link *l = p->front.edge->up[0];
	uint32_t cprod = l->tx.cprod, mask = l->edge->g.ring_cap - 1;

	reader_set(p->back.edge);
	count_begin();
	sl_signal_vm(p->back.edge);
	count_end();
	check_reads(&p->back.edge->up[0]->peer->sleeping, 4, 1);
	check_total(1);
	reader_set(p->front.edge);
	count_begin();
	uint32_t nb = sl_link_reap(l);
	count_end();
	CHECK(nb == BATCH);
	check_reads(&l->tx.ring->cons_pair, 8, is_first);
	check_reads(&l->tx.ring->cons, 4, 0);
	for (unsigned i = 0; i <= BATCH; i++)          /* and the one that is not there yet */
		check_reads(&l->tx.completions[(cprod + i) & mask], 8, 1);
	check_total(is_first + BATCH + 1);
}

static void pending(struct pair *p)
{
	struct sl_link *l = p->back.edge->up[0];

	reader_set(p->back.edge);
	count_begin();
	bool any = sl_edge_pending(p->back.edge);
	count_end();
	CHECK(!any);
	check_entry(&l->rx.entries[l->rx.cons & (l->edge->g.ring_cap - 1)], false);
	check_total(1);
}

static void choose(struct pair *p)
{
	struct sl_edge *e = p->front.edge;
	struct sl_link other = *e->up[0];

	other.peer = e->self;                  /* any other line */
	e->alias.nb = 2;
	e->alias.link[0] = e->up[0];
	e->alias.link[1] = &other;
	reader_set(e);
	for (int i = 0; i < 100; i++) {
		count_begin();
		sl_select_best_vm(e);
		count_end();
		check_total(2);                /* a depth for each of the two drawn */
		decisions++;
	}
	e->alias.nb = 1;
}

static void bad_lap(struct pair *p)
{
	struct sl_link *l = p->back.edge->up[0];
	uint32_t seq, at = l->rx.cons & (l->edge->g.ring_cap - 1);
	struct sl_request_packet r[1];

	p->front.edge->up[0]->tx.entries[at].lap = 3;
	reader_set(p->back.edge);
	count_begin();
	sl_link_recv(l, r, 1, &seq);
	count_end();
	CHECK(l->quarantined);
	check_entry(&l->rx.entries[at], false);
	check_reads(&l->rx.ring->prod_pair, 8, 1);     /* is the peer to blame, or has it a successor? */
	check_reads(&l->tx.ring->cons, 4, 1);          /* it is lost: pending or in progress */
	check_reads(&l->tx.ring->cons_pair, 8, 1);
	check_total(4);
}

static void peer_gone(struct pair *p)
{
	struct sl_link *l = p->front.edge->up[0];

	entries_send(p, 3);
	reader_set(p->front.edge);
	count_begin();
	sl_edge_peer_gone(p->front.edge, 2);
	count_end();
	check_reads(&l->tx.ring->cons, 4, 1);          /* pending or in progress */
	check_reads(&l->tx.ring->cons_pair, 8, 1);
}

static int no_open(struct sl_flow *f, const void *msg, uint32_t len, bool is_last)
{
	(void)f, (void)msg, (void)len, (void)is_last;
	return -SL_ERROR_REFUSED;
}

int main(void)
{
	static const struct sl_flow_ops ops = {.open = no_open};
	struct pair p;

	setvbuf(stdout, NULL, _IONBF, 0);
	traps_init();
	pair_open(&p, NULL, &ops, &ops);
	for (int round = 0; round < 30; round++) {     /* the ring wraps, so runs cross its end, too */
		receive(&p, round == 0);
		signal_and_reap(&p, round == 0);
	}
	pending(&p);
	choose(&p);
	bad_lap(&p);
	peer_gone(&p);
	pair_close(&p);
	printf("%u decisions on words of a peer: each read once, counted by the accessors%s\n", decisions,
	       SL_TRAPS ? " and by the processor" : "");
	return 0;
}
