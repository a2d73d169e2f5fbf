/* SPDX-License-Identifier: Apache-2.0 */
/* Crash matrix: one process of a pair is killed with SIGKILL at each named step (base/fault.h) of sending, receiving, completing, waking and
 * linking. The survivor must lose nothing that was pending, do nothing twice, get every slot back, and work with a new owner of the seat.
 * Built with SL_FAULT_POINTS; needs no test library. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/fault.h"
#include "pair.h"

enum { FLOWS = 40, TIMES = 4, PATIENCE_S = 20 };

static const char *const points[] = {
	"send: entries written", "send: published", "complete: gathered", "complete: published", "signal: before doorbells",
	"signal: doorbell rung", "receive: copied", "receive: taken", "reap: slots back", "layer: open", "layer: data",
};
static const char *const link_points[] = {"up: pairs cleared", "up: rings cleared", "up: sender's pair set"};

/* What the victim did, in memory that outlives it */
static struct deeds {
	unsigned begun[FLOWS];       /* OPENs that its layer saw */
	unsigned answered[FLOWS];
	bool reached;
} *deeds;

static struct {
	const char *point;           /* NULL: not the victim */
	unsigned times;
} fault;

static struct {
	unsigned overs[FLOWS], unseen[FLOWS], opens, got[FLOWS];
	enum sl_request_status status[FLOWS];
	struct sl_flow *flow[FLOWS];
} mine;

static const char *where = "";
static struct pair *both;

#define CHECK(cond) do { if (!(cond)) { printf("%s: %s:%d: %s\n", where, __FILE__, __LINE__, #cond); exit(1); } } while (0)

void sl_fault(const char *at)
{
	if (!fault.point || strcmp(at, fault.point) || --fault.times)
		return;
	deeds->reached = true;
	kill(getpid(), SIGKILL);
}

/* --- the layers: the front asks, the back echoes --- */

static unsigned number_of(const struct sl_flow *f) { return (unsigned)(uintptr_t)f->user; }

static int back_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	uint32_t number;

	(void)fin;
	memcpy(&number, msg, sizeof(number));
	CHECK(len == 4 && number < FLOWS);
	f->user = (void *)(uintptr_t)number;
	deeds->begun[number]++;
	mine.opens++;
	mine.flow[number] = f;
	sl_fault("layer: open");
	return 0;
}

static uint32_t back_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	sl_fault("layer: data");
	deeds->answered[number_of(f)]++;
	return sl_flow_write(f, p, len);
}

static uint32_t front_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	sl_fault("layer: data");
	for (uint32_t i = 0; i < len; i++)
		CHECK(p[i] == (uint8_t)number_of(f));
	mine.got[number_of(f)] += len;
	return len;
}

static void fin(struct sl_flow *f) { sl_flow_fin(f); }
static void writable(struct sl_flow *f) { sl_flow_resume(f); }

static void over(struct sl_flow *f, enum sl_request_status status)
{
	mine.overs[number_of(f)]++;
	mine.unseen[number_of(f)] = f->unseen;
	mine.status[number_of(f)] = status;
}

static const struct sl_flow_ops front_ops = {.data = front_data, .fin = fin, .writable = writable, .over = over};
static const struct sl_flow_ops back_ops = {.open = back_open, .data = back_data, .fin = fin, .writable = writable, .over = over};

static int bell_of(void *user, uint16_t vm_id)
{
	(void)vm_id;
	return ((struct pair_side *)user)->doorbell;
}

static unsigned flows_open(struct sl_edge *e, unsigned from, unsigned to)
{
	for (; from < to; from++) {
		uint32_t number = from;
		uint8_t body[700];

		memset(body, (int)from, sizeof(body));
		if (sl_flow_open(e, 0, &number, 4, 0, (void *)(uintptr_t)from, &mine.flow[from]))
			break;
		sl_flow_write(mine.flow[from], body, sizeof(body));
		sl_flow_fin(mine.flow[from]);
	}
	return from;
}

/* As the loop of an instance: sleeps until it is rung, or for the millisecond after which it looks at the other process again */
static void turn(struct sl_edge *e)
{
	/* pair.c hands each side its own eventfd as the peer's: so it is rung on the other's */
	struct pollfd bell = {.fd = e->user == &both->front ? both->back.doorbell : both->front.doorbell, .events = POLLIN};
	uint32_t work = sl_edge_poll(e);
	uint64_t rung;

	sl_edge_turn_end(e);
	if (work)
		return;
	sl_edge_sleep_set(e, true);
	if (!sl_edge_pending(e) && poll(&bell, 1, 1) == 1)
		CHECK(read(bell.fd, &rung, sizeof(rung)) == sizeof(rung));
	sl_edge_sleep_set(e, false);
}

static void victim_runs(struct pair_side *s, bool is_front)
{
	unsigned opened = 0;

	for (uint64_t end = sl_now_ns() + PATIENCE_S * 1000000000ull; sl_now_ns() < end;) {
		if (is_front && opened < FLOWS)
			opened = flows_open(s->edge, opened, opened + 3 < FLOWS ? opened + 3 : FLOWS);
		turn(s->edge);
	}
	_exit(0);
}

/* --- what must hold --- */

static void slots_all_back(const struct sl_edge *e)
{
	CHECK(e->nb_free_small == e->g.nb_small && e->nb_free_big == e->g.nb_big);
}

static void nobody_blamed(const struct pair_side *s)
{
	for (unsigned c = 0; c <= SL_CNT_QUARANTINED; c++)
		if (c != SL_CNT_STALE_FLOW)
			CHECK(!s->counters[c]);
}

/* A new owner takes the victim's seat; the survivor and it carry on with a fresh flow. */
static void new_owner(struct pair *p, bool front_dies)
{
	struct pair_side *dead = front_dies ? &p->front : &p->back, *left = front_dies ? &p->back : &p->front;
	struct sl_edge_seat seat = {.edge_id = p->g.edge_id, .side = front_dies ? SL_FRONT : SL_BACK, .incarnation = 7,
				    .peer_layer = front_dies ? SL_LAYER_TLS : SL_LAYER_TCP};
	struct sl_route_page *to_dead = front_dies ? &p->to_front : &p->to_back, *to_left = front_dies ? &p->to_back : &p->to_front;
	const struct sl_edge_ops *ops = left->edge->ops;

	sl_edge_routes_set(left->edge, to_dead, bell_of);      /* a page from before the death */
	CHECK(!left->edge->nb_up);
	sl_edge_detach(dead->edge);
	CHECK(!sl_edge_attach(p->fd, true, &seat, front_dies ? SL_LAYER_TCP : SL_LAYER_TLS, 3, ops, front_dies ? &front_ops : &back_ops,
			      dead, &dead->edge));
	to_dead->routes[0].incarnation = 7;
	to_dead->routes[0].vm_id = 3;
	sl_edge_routes_set(left->edge, to_dead, bell_of);
	sl_edge_routes_set(dead->edge, to_left, bell_of);
	memset(&mine, 0, sizeof(mine));
	memset(deeds, 0, sizeof(*deeds));
	CHECK(flows_open(p->front.edge, 0, 1) == 1);
	pair_settle(p);
	CHECK(mine.opens == 1 && deeds->begun[0] == 1 && mine.got[0] == 700);
	CHECK(mine.overs[0] == 2 && mine.status[0] == SL_COMPLETED);   /* both ends of the flow are in this process now */
	slots_all_back(p->front.edge);
	slots_all_back(p->back.edge);
	nobody_blamed(&p->front);
	nobody_blamed(&p->back);
}

static void wait_dead(pid_t child, struct sl_edge *e, bool (*done)(void), unsigned *opened)
{
	uint64_t end = sl_now_ns() + PATIENCE_S * 1000000000ull;
	int status;

	while (!waitpid(child, &status, WNOHANG)) {
		if (opened && *opened < FLOWS)
			*opened = flows_open(e, *opened, *opened + 3 < FLOWS ? *opened + 3 : FLOWS);
		turn(e);
		CHECK(sl_now_ns() < end);
		if (done())
			kill(child, SIGKILL);        /* it never came to that step so often: it dies idle */
	}
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static bool all_over(void)
{
	for (unsigned i = 0; i < FLOWS; i++)
		if (!mine.overs[i])
			return false;
	return true;
}

/* --- the receiver of requests dies --- */

static void back_dies(struct pair *p)
{
	struct sl_link *l = p->front.edge->up[0];
	unsigned opened = 0;
	pid_t child = fork();

	if (!child) {
		fault.point = where;
		victim_runs(&p->back, false);
	}
	wait_dead(child, p->front.edge, all_over, &opened);
	uint32_t cons = sl_peek_u32(&l->tx.ring->cons), prod = l->tx.prod;
	uint32_t open_seq[FLOWS];

	for (unsigned i = 0; i < opened; i++)
		open_seq[i] = mine.overs[i] ? cons - 1 : mine.flow[i]->open_seq;
	sl_edge_peer_gone(p->front.edge, 2);
	sl_edge_turn_end(p->front.edge);
	for (unsigned i = 0; i < opened; i++) {
		bool pending = open_seq[i] - cons < prod - cons;

		CHECK(mine.overs[i] == 1);
		CHECK(deeds->begun[i] <= 1);
		if (mine.status[i] == SL_COMPLETED) {
			CHECK(mine.got[i] == 700);
			continue;
		}
		CHECK(mine.status[i] == SL_ERROR_PEER_GONE);
		CHECK(mine.unseen[i] == pending);            /* nothing pending is lost */
		CHECK(!mine.unseen[i] || !deeds->begun[i]);  /* nothing begun is done again */
	}
	slots_all_back(p->front.edge);
	nobody_blamed(&p->front);
}

/* --- the sender of requests dies --- */

static bool all_served(void)
{
	return mine.opens == FLOWS && all_over();
}

static void front_dies(struct pair *p)
{
	struct sl_link *l = p->back.edge->up[0];
	pid_t child = fork();

	if (!child) {
		fault.point = where;
		victim_runs(&p->front, true);
	}
	wait_dead(child, p->back.edge, all_served, NULL);
	uint32_t prod = l->rx.cons + sl_link_waiting(l);     /* a killed process has stored all or nothing of a burst */

	sl_edge_peer_gone(p->back.edge, 1);
	sl_edge_turn_end(p->back.edge);
	CHECK(l->rx.cons == prod);                           /* its last words were heard */
	for (unsigned i = 0; i < FLOWS; i++) {
		CHECK(deeds->begun[i] <= 1);
		CHECK(mine.overs[i] == deeds->begun[i]);
	}
	slots_all_back(p->back.edge);
	nobody_blamed(&p->back);
}

/* --- a new owner dies while it links up --- */

static void linking_dies(struct pair *p)
{
	struct sl_edge_seat seat = {.edge_id = p->g.edge_id, .side = SL_BACK, .incarnation = 5, .peer_layer = SL_LAYER_TCP};
	unsigned opened;
	pid_t child;

	CHECK(flows_open(p->front.edge, 0, 4) == 4);         /* traffic of the first owner leaves its indices behind */
	pair_settle(p);
	sl_edge_peer_gone(p->front.edge, 2);
	sl_edge_turn_end(p->front.edge);
	memset(&mine, 0, sizeof(mine));
	memset(deeds, 0, sizeof(*deeds));
	p->to_back.routes[0].incarnation = 5;
	sl_edge_routes_set(p->front.edge, &p->to_back, bell_of);
	child = fork();
	if (!child) {
		fault.point = where;
		if (!sl_edge_attach(p->fd, true, &seat, SL_LAYER_TLS, 2, p->front.edge->ops, &back_ops, &p->back, &p->back.edge))
			sl_edge_routes_set(p->back.edge, &p->to_front, bell_of);
		_exit(0);
	}
	opened = 4;
	flows_open(p->front.edge, 0, opened);
	wait_dead(child, p->front.edge, all_over, NULL);
	sl_edge_peer_gone(p->front.edge, 2);
	sl_edge_turn_end(p->front.edge);
	for (unsigned i = 0; i < opened; i++)
		CHECK(mine.overs[i] == 1 && mine.status[i] == SL_ERROR_PEER_GONE && !deeds->begun[i]);
	slots_all_back(p->front.edge);
	nobody_blamed(&p->front);
}

/* One cell of the matrix in a process of its own. Returns 1 if the step was reached, 0 if not; exits on a failure. */
static int cell(const char *point, unsigned times, void (*scene)(struct pair *), bool front_victim)
{
	/* few slots and a short ring: waiting for either is part of it */
	struct sl_region small = {.ring_cap = 32, .nb_small = 24, .nb_big = 2};
	struct pair p;
	int reached;

	where = point;
	fault.point = NULL;
	fault.times = times;
	memset(&mine, 0, sizeof(mine));
	memset(deeds, 0, sizeof(*deeds));
	pair_open(&p, &small, &front_ops, &back_ops);
	both = &p;
	scene(&p);
	reached = deeds->reached;
	new_owner(&p, front_victim);
	pair_close(&p);
	return reached;
}

int main(void)
{
	unsigned cells = 0, killed = 0, missed = 0;

	deeds = mmap(NULL, sizeof(*deeds), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (deeds == MAP_FAILED)
		return 1;
	setvbuf(stdout, NULL, _IONBF, 0);
	for (unsigned i = 0; i < sl_nb(points); i++) {
		unsigned at_point = 0;

		for (unsigned times = 1; times <= TIMES * TIMES; times += times < TIMES ? 1 : TIMES) {
			at_point += (unsigned)cell(points[i], times, back_dies, false);
			at_point += (unsigned)cell(points[i], times, front_dies, true);
			cells += 2;
		}
		killed += at_point;
		if (!at_point) {
			printf("never reached: %s\n", points[i]);
			missed++;
		}
	}
	for (unsigned i = 0; i < sl_nb(link_points); i++, cells++) {
		unsigned here = (unsigned)cell(link_points[i], 1, linking_dies, false);

		killed += here;
		missed += !here;
	}
	printf("%u cells, %u killed at %zu steps, the others idle: nothing lost, nothing twice, every slot back\n", cells, killed,
	       sl_nb(points) + sl_nb(link_points));
	return missed ? 1 : 0;
}
