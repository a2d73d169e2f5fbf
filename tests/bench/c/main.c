/* SPDX-License-Identifier: Apache-2.0 */
/* bench-edge WHAT SECONDS [NUMBER]: measures one thing between two processes on cores 0 and 1, prints one number. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/base.h"
#include "rig.h"

static void hop_run(struct rig *r, unsigned len)
{
	r->len = len;
	bench_ring(r);
}

static void whole_run(struct rig *r, unsigned len)
{
	r->whole = true;
	hop_run(r, len);
}

static void ring_run(struct rig *r, unsigned cap) { r->ring_cap = cap; bench_ring(r); }
static void rtt_run(struct rig *r, unsigned n) { (void)n; bench_rtt(r); }
static void wakeup_run(struct rig *r, unsigned n) { (void)n; bench_wakeup(r); }
static void eventfd_run(struct rig *r, unsigned n) { (void)n; bench_eventfd(r); }
static void line_run(struct rig *r, unsigned n) { (void)n; bench_line(r); }
static void layout_run(struct rig *r, unsigned n) { (void)n; bench_layout(r); }
static void copy_run(struct rig *r, unsigned len) { r->len = len; bench_copy(r); }
static void chain_run(struct rig *r, unsigned hops) { r->len = 64; bench_chain(r, hops); }

static const struct {
	const char *name;
	void (*run)(struct rig *r, unsigned number);
	unsigned most;       /* of NUMBER */
	const char *help;
} verbs[] = {
	{"ring", ring_run, SL_RING_CAP_MAX, "entries/s without payload; NUMBER: ring capacity, 0 = the default"},
	{"hop", hop_run, SL_BIG_LEN, "entries/s with NUMBER bytes of payload, one line of it written and read"},
	{"whole", whole_run, SL_BIG_LEN, "entries/s with NUMBER bytes of payload, all of it written and read"},
	{"rtt", rtt_run, 0, "ns, median round trip, both poll"},
	{"wakeup", wakeup_run, 0, "ns, median from sending to a sleeping receiver to its taking the entry"},
	{"eventfd", eventfd_run, 0, "ns, the same with nothing but two eventfds"},
	{"chain", chain_run, 8, "ns of CPU time for an entry through NUMBER hops"},
	{"select", bench_select, SL_SIDE_MAX, "ns for select_best_vm with NUMBER receivers"},
	{"line", line_run, 0, "ns to move one cache line from core to core"},
	{"layout", layout_run, 0, "ns, round trip of one bare line and a fence each way"},
	{"copy", copy_run, SL_BIG_LEN, "bytes/s in blocks of NUMBER bytes that one core writes and the other reads, without an edge"},
};

int main(int argc, char **argv)
{
	struct rig r = {.seconds = argc > 2 ? atof(argv[2]) : 0};
	unsigned long number = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;

	for (unsigned i = 0; i < sl_nb(verbs) && r.seconds > 0; i++) {
		if (strcmp(argv[1], verbs[i].name) || number > verbs[i].most)
			continue;
		setpgid(0, 0);
		signal(SIGTERM, SIG_DFL);
		rig_open(&r);
		verbs[i].run(&r, (unsigned)number);
		return 0;
	}
	fprintf(stderr, "usage: bench-edge WHAT SECONDS [NUMBER]\n");
	for (unsigned i = 0; i < sl_nb(verbs); i++)
		fprintf(stderr, "  %-8s %s\n", verbs[i].name, verbs[i].help);
	return 2;
}
