/* SPDX-License-Identifier: Apache-2.0 */
/* A layer: one protocol's code, as one struct of functions. The instance runs one at a time, and may be given another.
 *
 * Life: load (once for the process, of every layer, before the sandbox closes) -> the sandbox closes -> the instance is
 * assigned this layer -> init (configuration, keys, granted descriptors) -> edges are attached -> start (watch
 * descriptors) -> callbacks of flows, watches and timers -> drain -> stop -> perhaps another layer.
 * While an instance is warm, which is without an assignment and with nothing to do, it rehearses, every layer once.
 * Nothing can be opened after load: see SL_GRANT_* in abi/control.h. Everything runs in one thread; nothing may block. A
 * layer keeps its state behind inst->layer_state. */
#ifndef SL_LAYER_H
#define SL_LAYER_H

#include <stdbool.h>
#include <stdint.h>

#include "abi/control.h"
#include "base/base.h"
#include "base/timer.h"
#include "edge/flow.h"

struct sl_instance;

/* A descriptor in the loop's epoll set. The owner keeps the struct alive until sl_watch_del. */
struct sl_watch {
	int fd;
	uint32_t events;
	void (*ready)(struct sl_instance *inst, struct sl_watch *w, uint32_t events);   /* EPOLLIN | ... */
};

struct sl_layer {
	const char *name;                    /* as in the configuration: "tcp" */
	uint8_t id;                          /* enum sl_layer_id */
	const struct sl_flow_ops *front;     /* flows that the layer before us opens towards us; NULL: we are the first layer */
	const struct sl_flow_ops *back;      /* flows that we open towards the next layer; NULL: we are the last one */

	/* What a library reads or seeds when it is used first. 0 or -errno. NULL: nothing to do */
	int (*load)(struct sl_instance *inst);
	/* What takes long in init and can be done before, a piece at a time: true if there is more. What it finds is kept
	 * in *inst. An instance may be assigned the layer in the middle of it. NULL: nothing to do */
	bool (*rehearse)(struct sl_instance *inst);
	/* Returns 0 or -errno after sl_instance_fail() has put the reason into words. */
	int (*init)(struct sl_instance *inst);
	bool early;   /* init takes nothing that is granted: it need not wait for that, which takes a guest a while */
	int (*start)(struct sl_instance *inst);     /* NULL: nothing to do */
	/* No new flow from now on; end idle ones politely. The instance is drained once inst->active_flows is 0. */
	void (*drain)(struct sl_instance *inst);
	bool moves;   /* drain sees to the flows that we have opened; else the next layer is asked to end them */
	/* Gives back everything: memory, descriptors, watches, timers; wipes secrets. Flows that are open may be left to the
	 * instance, which ends them without a callback. NULL state: init has failed */
	void (*stop)(struct sl_instance *inst);
	/* extra system calls that the layer needs after the sandbox has closed, ends with -1; NULL: none */
	const int *syscalls;
};

/* An answer that the layer owes; what an answer is: see latency in struct sl_vm_status. All zero: not begun. */
struct sl_answer {
	struct sl_list node;
	uint64_t since_ns;
};

/* What a layer may use of its instance. */
struct sl_instance {
	const struct sl_layer *layer;
	void *layer_state;
	bool may_accelerate;                 /* sl_aead_device_open may find something, now or later */
	uint16_t vm_id;
	uint8_t state;                       /* enum sl_vm_state */
	bool draining;
	uint64_t now_ns;                     /* time at the start of this turn of the loop */
	struct sl_wheel wheel;               /* timers of the layer: sl_timer_arm(&inst->wheel, ...) */
	struct sl_assignment assignment;     /* private copy */
	/* published in VMStatus; layers add to them */
	uint32_t active_flows;
	uint64_t requests, bytes_in, bytes_out;
	uint64_t counters[SL_CNT_MAX];       /* by enum sl_counter */
	struct sl_shut_out shut_out;
	uint64_t latency[SL_LATENCY_MAX];    /* by sl_answer_done */
	struct sl_crypto_figures crypto;     /* tls: what it measured last */
	struct sl_crypto_figures rehearsed;  /* tls: what it measured while warm; outlives its assignments */
	struct sl_list answers;              /* begun and not complete, the oldest first */
	uint32_t trace_every;
};

/* The layers that are built in; NULL-terminated. */
extern const struct sl_layer *const sl_layers[];

/* The instance that owns an edge, and so the flow: for callbacks. */
struct sl_instance *sl_flow_instance(const struct sl_flow *f);

/* The edge on which flows of this service go on, NULL if this layer is its last or the service is unknown. */
struct sl_edge *sl_instance_next_edge(struct sl_instance *inst, unsigned service);

/* A descriptor that was granted and not taken yet, from now on the caller's; -1: no more of that kind and number. During
 * init only. */
int sl_instance_grant(struct sl_instance *inst, enum sl_grant_kind kind, uint32_t number);

/* The n-th configuration item of that type (0 first): pointer into the control region and its length, or NULL. Valid
 * during init only. The bytes are the manager's, so trusted. */
const void *sl_instance_conf(struct sl_instance *inst, enum sl_conf_type type, unsigned n, uint32_t *len);

/* Wipes a secret item after use. */
void sl_instance_conf_wipe(struct sl_instance *inst, const void *data, uint32_t len);

/* Records why the instance can not go on: printf text, shown by `swarmline status`. Returns -err. */
int sl_instance_fail(struct sl_instance *inst, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* epoll: add, change w->events, remove. Level-triggered. Return 0 or -errno. */
int sl_watch_add(struct sl_instance *inst, struct sl_watch *w);
int sl_watch_mod(struct sl_instance *inst, struct sl_watch *w, uint32_t events);
void sl_watch_del(struct sl_instance *inst, struct sl_watch *w);

/* Writes a trace event if the flow is traced. parent: request_id of the connection that a request belongs to, or 0. */
void sl_trace_flow(const struct sl_flow *f, enum sl_trace_point point, uint64_t parent);

/* Nobody waits for it any more. It may be one that was never begun, or is done. */
static inline void sl_answer_drop(struct sl_answer *a)
{
	if (a->node.next)
		sl_list_unlink(&a->node);
}

static inline void sl_answer_begin(struct sl_instance *inst, struct sl_answer *a)
{
	sl_answer_drop(a);
	a->since_ns = sl_now_ns();
	sl_list_append(&inst->answers, &a->node);
}

/* It is complete: counts how long it took. Twice is once. */
static inline void sl_answer_done(struct sl_instance *inst, struct sl_answer *a)
{
	uint64_t us = (sl_now_ns() - a->since_ns) / 1000;
	unsigned n = us < 2 ? 0 : 63 - (unsigned)__builtin_clzll(us);

	if (!a->node.next || sl_list_empty(&a->node))
		return;
	sl_list_unlink(&a->node);
	inst->latency[sl_min(n, (unsigned)SL_LATENCY_MAX - 1)]++;
}

/* Age of the oldest answer in nanoseconds, 0: there is none. */
static inline uint64_t sl_answer_oldest(const struct sl_instance *inst)
{
	const struct sl_answer *a = sl_container_of(inst->answers.next, struct sl_answer, node);

	return sl_list_empty(&inst->answers) ? 0 : sl_max(sl_now_ns() - a->since_ns, (uint64_t)1);
}

/* A fresh request_id of this instance. */
uint64_t sl_request_id(struct sl_instance *inst);

#endif
