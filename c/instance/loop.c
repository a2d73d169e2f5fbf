/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of an instance: take in, work, publish, and sleep when there is nothing to do. */
#include <unistd.h>

#include "base/atomic.h"
#include "instance/guest.h"
#include "instance/instance.h"

int sl_watch_add(struct sl_instance *inst, struct sl_watch *w)
{
	struct epoll_event ev = {.events = w->events, .data.ptr = w};

	return epoll_ctl(sl_runner_of(inst)->epfd, EPOLL_CTL_ADD, w->fd, &ev) ? -errno : 0;
}

int sl_watch_mod(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = w};

	if (w->events == events)
		return 0;
	w->events = events;
	return epoll_ctl(sl_runner_of(inst)->epfd, EPOLL_CTL_MOD, w->fd, &ev) ? -errno : 0;
}

void sl_watch_del(struct sl_instance *inst, struct sl_watch *w)
{
	struct sl_runner *r = sl_runner_of(inst);

	epoll_ctl(r->epfd, EPOLL_CTL_DEL, w->fd, NULL);
	/* an event of this watch may lie further down in the batch, and its owner is about to free it */
	for (int i = 0; i < r->batch_len; i++)
		if (r->batch[i].data.ptr == w)
			r->batch[i].data.ptr = NULL;
}

static void server_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	sl_doorbells_poll(sl_runner_of(inst));
	sl_control_poll(sl_runner_of(inst));
}

static void grants_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	(void)w;
	(void)events;
	sl_grants_recv(sl_runner_of(inst));
}

/* Entries, completions and waiting flows of all edges. */
static uint32_t edges_poll(struct sl_runner *r)
{
	uint32_t work = 0;

	for (unsigned i = 0; i < r->nb_edges; i++)
		work += sl_edge_poll(r->edges[i]);
	return work;
}

static bool edges_pending(struct sl_runner *r)
{
	for (unsigned i = 0; i < r->nb_edges; i++)
		if (sl_edge_pending(r->edges[i]))
			return true;
	return false;
}

static void edges_sleep_set(struct sl_runner *r, bool asleep)
{
	for (unsigned i = 0; i < r->nb_edges; i++)
		sl_edge_sleep_set(r->edges[i], asleep);
}

/* Senders compare it with each new flow: what it was at the last heartbeat would send all that comes until the next one
 * to whoever was idle just then. */
static void depth_post(struct sl_runner *r)
{
	if (r->depth == r->inst.active_flows)
		return;
	r->depth = r->inst.active_flows;
	for (unsigned i = 0; i < r->nb_edges; i++)
		sl_post_u32(&r->edges[i]->self->depth, r->depth);
}

static void turn_end(struct sl_runner *r)
{
	for (unsigned i = 0; i < r->nb_edges; i++)
		sl_edge_turn_end(r->edges[i]);
	depth_post(r);
}

static int events_handle(struct sl_runner *r, int timeout_ms)
{
	struct epoll_event events[SL_EVENTS_MAX];
	int n = epoll_wait(r->epfd, events, SL_EVENTS_MAX, timeout_ms);

	r->inst.now_ns = sl_now_ns();
	if (n <= 0)
		return 0;
	r->batch = events;
	r->batch_len = n;
	for (int i = 0; i < n; i++) {
		struct sl_watch *w = events[i].data.ptr;

		if (w)
			w->ready(&r->inst, w, events[i].events);
	}
	r->batch_len = 0;
	return n;
}

/* Sleeps until something comes or the next heartbeat is due; time asleep is not busy. */
static int sleep_turn(struct sl_runner *r)
{
	uint64_t now = sl_now_ns(), due = r->published_ns + SL_HEARTBEAT_NS;
	int timeout_ms = due > now ? (int)((due - now) / 1000000) + 1 : 0, n;

	if (timeout_ms > SL_WHEEL_MS)
		timeout_ms = r->inst.active_flows ? SL_WHEEL_MS : timeout_ms;
	if (r->guest)
		timeout_ms = sl_guest_sleep_ms(r->guest, &r->inst, timeout_ms);
	edges_sleep_set(r, true);
	if (edges_pending(r))   /* came between our last look and the announcement: nobody will ring for it */
		timeout_ms = 0;
	sl_busy_account(r, now);
	n = events_handle(r, timeout_ms);
	r->awake_since = r->inst.now_ns;
	r->inst.counters[SL_CNT_WAKEUPS]++;
	edges_sleep_set(r, false);
	return n;
}

static void housekeeping(struct sl_runner *r)
{
	sl_wheel_run(&r->inst.wheel, r->inst.now_ns / 1000000);
	if (r->inst.now_ns - r->published_ns < SL_HEARTBEAT_NS)
		return;
	sl_control_poll(r);
	sl_bells_poll(r);
	sl_status_publish(r, r->inst.draining && !r->inst.active_flows);
}

static int start(struct sl_runner *r)
{
	int err;

	r->server_watch = (struct sl_watch){r->doorbells.sock, EPOLLIN, server_ready};
	r->grants_watch = (struct sl_watch){r->grants_sock, EPOLLIN, grants_ready};
	err = sl_bells_listen(r);
	err = err ? err : sl_watch_add(&r->inst, &r->grants_watch);
	if (!err && r->doorbells.sock >= 0)
		err = sl_watch_add(&r->inst, &r->server_watch);
	if (err)
		return sl_instance_fail(&r->inst, -err, "epoll: %s", strerror(-err));
	sl_state_set(r, SL_VM_READY);   /* warm */
	sl_control_poll(r);             /* what was rung for before we listened */
	return 0;
}

/* A piece of what every layer may do before it is assigned; false: there is none, or somebody waits. It is not load. */
static bool rehearse(struct sl_runner *r)
{
	const struct sl_layer *layer = sl_layers[r->rehearsing];

	if (!layer || r->inst.layer || r->waiting || sl_peek_u32(&r->assignment->seq) != r->inst.assignment.seq)
		return false;
	sl_busy_account(r, sl_now_ns());
	if (!layer->rehearse || !layer->rehearse(&r->inst))
		r->rehearsing++;
	r->awake_since = sl_now_ns();
	return true;
}

/* One turn. Returns 0, or -errno: an assignment could not be taken. */
static int turn(struct sl_runner *r, uint64_t *worked_at)
{
	uint32_t work = edges_poll(r);

	turn_end(r);
	r->news += work;
	if (work) {
		*worked_at = r->inst.now_ns;
		events_handle(r, 0);
	} else if (r->assignment_due || rehearse(r)) {
		events_handle(r, 0);
	} else if (r->spin_ns && sl_now_ns() - *worked_at < r->spin_ns) {
		sl_relax();
		events_handle(r, 0);
	} else if (sleep_turn(r)) {
		*worked_at = r->inst.now_ns;
	}
	turn_end(r);
	housekeeping(r);
	return r->assignment_due ? sl_assignment_poll(r) : 0;
}

int sl_loop_run(struct sl_runner *r)
{
	uint64_t worked_at;
	int err;

	r->inst.now_ns = r->awake_since = worked_at = r->busy_since = sl_now_ns();
	sl_wheel_init(&r->inst.wheel, r->inst.now_ns / 1000000);
	err = start(r);
	while (!err && !r->stopping)
		err = turn(r, &worked_at);
	if (err)
		return err;
	sl_layer_leave(r);
	sl_state_set(r, SL_VM_GONE);
	return 0;
}
