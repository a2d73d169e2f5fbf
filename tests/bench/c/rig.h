/* SPDX-License-Identifier: Apache-2.0 */
/* What the measuring programs share: edges in hugepages, processes pinned to cores, a page of words between them. */
#ifndef SL_BENCH_RIG_H
#define SL_BENCH_RIG_H

#include "edge/edge.h"

enum { RIG_BURST = 32 };

/* Between the measuring processes, outside of any edge. Each word has a cache line of its own: polling one disturbs
 * no other. */
struct rig_word {
	uint64_t v;
	uint8_t pad[56];
};

struct rig_shared {
	struct rig_word stop;      /* the receiver has measured long enough */
	struct rig_word ready;     /* counts processes that are set up */
	struct rig_word result[16];
	struct rig_word ball;      /* of the bare line transfer */
	struct rig_word echo;
};

struct rig_edge {
	int fd;
	uint8_t front_layer;
};

struct rig {
	struct rig_shared *shared;
	double seconds;            /* how long to measure */
	uint32_t len;              /* payload bytes of one entry */
	uint32_t ring_cap;         /* 0: the default */
	bool whole;                /* write and read all of the payload, not one line of it */
	bool huge;                 /* the last edge lies in hugepages */
	int bell[16];              /* eventfd of each process */
};

/* All of these end the program with a message when something fails: there is nothing to measure then. */
void rig_open(struct rig *r);
/* Formats a region of one front and nb_back back peers in hugepages, or, with a warning, in 4 KiB pages. */
void rig_edge_make(struct rig *r, struct rig_edge *edge, uint8_t front_layer, uint16_t nb_back);
/* Attaches and sets the routes: the front is process `front` and the only back peer process `front + 1`. */
struct sl_edge *rig_attach(struct rig *r, const struct rig_edge *edge, enum sl_side side, unsigned front);
void rig_pin(unsigned core);
/* Runs run(r, i, arg) for i = 0 ... nb - 1, each in a process of its own on core i % 2; waits until all ended well. */
void rig_run(struct rig *r, unsigned nb, void (*run)(struct rig *r, unsigned i, void *arg), void *arg);
/* Returns when nb processes have called it. */
void rig_meet(struct rig *r, unsigned nb);
void rig_fail(const char *what) __attribute__((noreturn));

/* Sends up to nb entries, payload in place. Returns how many the ring and the arena took; publishes nothing. */
uint32_t rig_send(struct rig *r, struct sl_edge *e, uint64_t *next_id, uint32_t nb);
void rig_payload_write(const struct rig *r, uint8_t *data, uint64_t id);
uint64_t rig_payload_read(const struct rig *r, const uint8_t *data);

/* The measurements: each prints one number */
void bench_ring(struct rig *r);
void bench_rtt(struct rig *r);
void bench_wakeup(struct rig *r);
void bench_eventfd(struct rig *r);
void bench_chain(struct rig *r, unsigned hops);
void bench_select(struct rig *r, unsigned receivers);
void bench_line(struct rig *r);
void bench_layout(struct rig *r);
void bench_copy(struct rig *r);

#endif
