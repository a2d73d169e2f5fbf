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

struct sl_bell {
	struct sl_watch watch;
	uint32_t rings;                       /* in this period */
	bool muted;                           /* for the rest of it */
};

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
	struct sl_guest *guest;               /* NULL: a process, with eventfds as doorbells */
	struct sl_doorbells doorbells;
	struct sl_watch server_watch, grants_watch;
	struct sl_bell bells[SL_BELLS];
	uint64_t bells_since;                 /* begin of the period */
	uint32_t news;                        /* entries and completions in it */
	uint32_t flooded;                     /* as in VMStatus */
	int grants_sock;
	struct sl_grants granted;             /* for the assignment of that seq */
	int granted_fds[SL_GRANTS_MAX];       /* -1: taken */
	bool assignment_due;                  /* something came: look at the end of the turn, when no callback is running */
	bool waiting;                         /* for the grants of the assignment */
	unsigned rehearsing;                  /* the layer, by its place in sl_layers */
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
	uint32_t depth;                       /* as the peers see it */
	uint64_t hardware;                    /* bits of enum sl_hardware */
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

/* accelerator.c */
/* While files may be opened: has a device of DPDK ready for tls, which works as well without. NULL: none. */
void sl_accelerator_load(struct sl_runner *r, const char *device);

/* bells.c */
/* Listens to the own doorbells. 0 or -errno. */
int sl_bells_listen(struct sl_runner *r);
/* At least with each heartbeat: ends the period when it is over. */
void sl_bells_poll(struct sl_runner *r);
/* Peers that join or leave. */
void sl_doorbells_poll(struct sl_runner *r);

/* cpu.c */
/* Bits of enum sl_hardware that the CPUs have. */
uint64_t sl_cpu_hardware(void);

/* control.c */
/* Maps a control region and checks its header: -ENOMEM, -EPROTO: another ABI version, -EINVAL: contradictory. */
int sl_control_map(int fd, uint16_t vm_id, struct sl_control **ret);
/* Maps control_fd and checks the control region's header. 0 or -errno. */
int sl_control_attach(struct sl_runner *r);
/* Copies what its writer guards by *seq. Returns the even seq of a consistent copy, or 0 if the writer was in between
 * each time. */
uint32_t sl_seq_copy(const __u32 *seq, void *to, const void *from, size_t len);
/* As sl_instance_conf, of any mapped control region. */
const void *sl_conf_find(const struct sl_control *c, enum sl_conf_type type, unsigned n, uint32_t *len);
/* Attaches the edge of that seat in the assignment, whose memory is fd. Takes fd over. */
int sl_edge_take(struct sl_runner *r, unsigned n, int fd);
/* Carries out what the manager wrote: commands and route pages. */
void sl_control_poll(struct sl_runner *r);
/* Writes VMStatus; tells the manager when the state changed or tell is set. */
void sl_status_publish(struct sl_runner *r, bool tell);
void sl_state_set(struct sl_runner *r, enum sl_vm_state state);
/* Adds the present stretch of work to busy_ns and begins a new one. */
void sl_busy_account(struct sl_runner *r, uint64_t now_ns);

/* assign.c */
/* Of all layers, before the walls close. 0 or -errno, reason recorded. */
int sl_layers_load(struct sl_runner *r);
/* Takes in what was granted; the former message's is closed. */
void sl_grants_recv(struct sl_runner *r);
void sl_grants_drop(struct sl_runner *r);
/* Follows the assignment as far as it can: lets go of the former layer, takes the next when its grants have come. 0 or
 * -errno, reason recorded. Not from within a callback of the loop. */
int sl_assignment_poll(struct sl_runner *r);
/* Ends the layer; its edges stay attached. */
void sl_layer_leave(struct sl_runner *r);

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
int sl_sandbox_close(void);
/* The same for a guest, whose root is the initramfs. whole: the process; else the calling thread, as another one still
 * needs its rights. */
int sl_sandbox_close_guest(bool whole);

#endif
