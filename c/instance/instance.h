/* SPDX-License-Identifier: Apache-2.0 */
/* The instance behind struct sl_instance: what main, loop, control and sandbox share. Layers see instance/layer.h
 * only. */
#ifndef SL_INSTANCE_H
#define SL_INSTANCE_H

#include <sys/epoll.h>

#include "base/log.h"
#include "edge/doorbell.h"
#include "edge/edge.h"
#include "instance/layer.h"

enum { SL_EVENTS_MAX = 128 };

struct sl_guest;

struct sl_runner {
	struct sl_instance inst;
	struct sl_log log;
	int epfd;
	int control_fd;
	struct sl_control *control;           /* the mapped control region: offsets below were checked once */
	struct sl_assignment *assignment;
	struct sl_route_page *routes;
	struct sl_vm_status *status;
	struct sl_trace *trace;
	const uint8_t *conf;
	struct sl_guest *guest;               /* NULL: a process, with eventfds as doorbells */
	struct sl_doorbells doorbells;
	struct sl_watch doorbell_watch, server_watch;
	struct sl_edge *edges[SL_EDGES_MAX];  /* by seat in the assignment */
	unsigned nb_edges;
	uint32_t cmd_seen;
	uint32_t routes_seen[SL_EDGES_MAX];
	uint32_t trace_next;
	uint64_t next_request;
	uint64_t spin_ns;
	uint64_t published_ns;                /* last VMStatus */
	uint64_t awake_since;                 /* start of the present stretch of work */
	uint64_t busy_ns, busy_before, busy_since;
	uint32_t load;
	bool server_gone;                     /* the holder died: no joins and leaves any more, work goes on */
	bool stopping;
	struct epoll_event *batch;            /* events being handled, so that sl_watch_del can forget those of a freed watch */
	int batch_len;
	char error[SL_TEXT_LEN];
	int error_code;
};

static inline struct sl_runner *sl_runner_of(struct sl_instance *inst)
{
	return sl_container_of(inst, struct sl_runner, inst);
}

/* control.c */
/* Maps control_fd and checks the control region's header. 0 or -errno. */
int sl_control_attach(struct sl_runner *r);
/* Copies the assignment and finds the layer. 0, -EAGAIN: there is none yet, or -errno. */
int sl_assignment_take(struct sl_runner *r);
/* Attaches the edge of that id, whose memory is fd, to its seat in the assignment. fd may be closed afterwards. */
int sl_edge_take(struct sl_runner *r, uint32_t edge_id, int fd);
/* Attaches all edges of the assignment; their memfds come over edges_fd, in any order. */
int sl_edges_attach(struct sl_runner *r, int edges_fd, int timeout_ms);
/* Carries out what the manager wrote: commands and route pages. */
void sl_control_poll(struct sl_runner *r);
/* Peers that join or leave. */
void sl_doorbells_poll(struct sl_runner *r);
/* Writes VMStatus; tells the manager when the state changed or tell is set. */
void sl_status_publish(struct sl_runner *r, bool tell);
void sl_state_set(struct sl_runner *r, enum sl_vm_state state);
/* Adds the present stretch of work to busy_ns and begins a new one. */
void sl_busy_account(struct sl_runner *r, uint64_t now_ns);

/* loop.c */
/* Runs until SL_CMD_STOP or drained and told so. */
int sl_loop_run(struct sl_runner *r);

/* sandbox.c */
struct sl_sandbox {
	unsigned uid, gid;
	int pid_fd;          /* the pid of the process that goes on is written here */
};
/* Own user, network, mount, pid, ipc, uts namespaces as an unprivileged user. Returns in the process that goes on (pid
 * 1 of its namespace): 0 or -errno. */
int sl_sandbox_enter(const struct sl_sandbox *s);
/* Empty read-only root, limits, no capability, allow-list of system calls. Nothing can be opened any more. 0 or
 * -errno. */
int sl_sandbox_close(const int *extra_syscalls);
/* The same for a guest, whose root is the initramfs. */
int sl_sandbox_close_guest(const int *extra_syscalls);

#endif
