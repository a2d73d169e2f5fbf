/* SPDX-License-Identifier: Apache-2.0 */
/* The own doorbells, and those of peers as they come and go.
 *
 * Each peer that may ring has a doorbell of its own, so that it can neither silence another's nor ring unseen. An honest one
 * rings once for what it has published, at most: it rings no more often than entries and completions come, but for some that
 * are still on their way. One that does is not listened to for the rest of the period, is named in VMStatus, and costs no more
 * than SL_BELL_RINGS_MAX wakes in each. What it publishes meanwhile is found with the next heartbeat. When it stops, it is
 * forgiven. */
#include "base/base.h"
#include "instance/guest.h"
#include "instance/instance.h"

_Static_assert((int)SL_BELLS <= (int)SL_IVSHMEM_VECTORS_MAX && SL_BELLS <= 32, "a vector, and a bit of flooded, for each");

/* In a virtual machine an interrupt that nobody waits for costs as much as one that is: the machine is not to get it. */
static int bell_listen(struct sl_runner *r, struct sl_bell *b)
{
	int err = r->guest ? sl_guest_bell_bind(r->guest, (unsigned)(b - r->bells), b->watch.fd) : 0;

	return err ? err : sl_watch_add(&r->inst, &b->watch);
}

static void bell_mute(struct sl_runner *r, struct sl_bell *b)
{
	uint32_t before = r->flooded;

	b->muted = true;
	r->flooded |= 1u << (b - r->bells);
	r->inst.counters[SL_CNT_DOORBELL_FLOODS]++;
	sl_watch_del(&r->inst, &b->watch);
	if (r->guest)
		sl_guest_bell_bind(r->guest, (unsigned)(b - r->bells), -1);
	if (r->flooded != before)
		sl_status_publish(r, true);
}

static void bell_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	struct sl_runner *r = sl_runner_of(inst);
	struct sl_bell *b = sl_container_of(w, struct sl_bell, watch);

	(void)events;   /* edge-triggered: the counter need not be read */
	b->rings++;
	if (b != &r->bells[SL_VM_MANAGER] && b->rings > SL_BELL_RINGS_MAX && b->rings - SL_BELL_RINGS_MAX > r->news)
		bell_mute(r, b);
	sl_control_poll(r);
}

int sl_bells_listen(struct sl_runner *r)
{
	int err = 0;

	for (unsigned i = 0; i < SL_BELLS && !err; i++) {
		r->bells[i].watch = (struct sl_watch){r->doorbells.own[i], EPOLLIN | EPOLLET, bell_ready};
		err = bell_listen(r, &r->bells[i]);
	}
	return err;
}

void sl_bells_poll(struct sl_runner *r)
{
	if (r->inst.now_ns - r->bells_since < SL_BELL_PERIOD_NS)
		return;
	r->bells_since = r->inst.now_ns;
	r->news = 0;
	for (unsigned i = 0; i < SL_BELLS; i++) {
		struct sl_bell *b = &r->bells[i];

		b->rings = 0;
		if (b->muted)
			b->muted = bell_listen(r, b);
		else
			r->flooded &= ~(1u << i);
	}
}

void sl_doorbells_poll(struct sl_runner *r)
{
	uint16_t vm_id;
	int fd, n;

	while ((n = sl_doorbells_next(&r->doorbells, &vm_id, &fd)) > 0) {
		for (unsigned i = 0; i < r->nb_edges; i++) {
			if (fd < 0)
				sl_edge_peer_gone(r->edges[i], vm_id);
			sl_edge_doorbell_set(r->edges[i], vm_id, fd);
		}
	}
	if (n < 0 && !r->server_gone) {
		r->server_gone = true;
		sl_watch_del(&r->inst, &r->server_watch);
		sl_log(&r->log, "warning", "the doorbell server is gone (%s); going on with the peers known now", strerror(-n));
	}
}
