/* SPDX-License-Identifier: Apache-2.0 */
/* The classifier in user space, for a NIC that the kernel does not drive: the source of ebpf/classifier.bpf.c, compiled
 * for the router, on the same pinned maps (abi/classifier.h). How it comes by what a map holds:
 *
 *   config, vms    mapped, read-only: what the manager writes counts at once, as in the kernel
 *   maglev         the table of each service mapped; a new one comes by sl_classifier_table_set(), since opening a map
 *                  by its id needs rights that the router has given up by then
 *   services, vips hash maps can not be mapped: copied, anew whenever config's generation changes
 *   flows, frags   LRU maps can not be mapped either, and belong to one classifier anyway: tables of its own. That of
 *                  the flows is a pinned map: a router that is started again goes on with it
 *   counters       counted privately, written to the map by sl_classifier_publish()
 *   xsks           who serves a queue is the caller itself: sl_classifier_queues_set()
 *
 * One thread at a time. Nothing allocates, logs or makes a system call after open, except turn() when the generation
 * changed, table_set() and publish(): these use bpf(2) on open descriptors only, which takes no rights. */
#ifndef SL_CLASSIFIER_H
#define SL_CLASSIFIER_H

#include "abi/classifier.h"
#include "base/base.h"

struct sl_classifier;

/* Opens the maps pinned in pin_dir; user_flows is made and pinned if it is not there. Needs root. -ENOENT: there are no
 * such pins; -EPERM; -EINVAL: a map is of another build; -ENOMEM. */
int sl_classifier_open(const char *pin_dir, struct sl_classifier **ret);
void sl_classifier_close(struct sl_classifier *c);   /* NULL is fine */

/* Bit n: a router serves receive queue n. None at first: what is of a service is then dropped. */
void sl_classifier_queues_set(struct sl_classifier *c, uint64_t queues);

/* Takes another table for new flows: fd is an array map of one struct sl_maglev, and stays the caller's. When it
 * returns, no packet uses the old table. -EINVAL: no such service, or not such a map. */
int sl_classifier_table_set(struct sl_classifier *c, uint32_t service, int fd);

/* To be called before each batch: takes notice of the time and of changed services. */
void sl_classifier_turn(struct sl_classifier *c, uint64_t now_ns);

/* A frame, of which only the first linear_len bytes can be read here. */
struct sl_classifier_frame {
	const void *data;         /* at an even address */
	uint32_t linear_len, len;
	uint32_t queue;
};

/* What is to be done with the frame: XDP_PASS (it is of no service), XDP_DROP, or XDP_REDIRECT with the verdict in
 * *meta. Otherwise meta->kind is 0. */
uint32_t sl_classifier_run(struct sl_classifier *c, const struct sl_classifier_frame *frame, struct sl_meta *meta);

/* Packets by verdict, including those of the routers before. publish: 0 or -errno. */
const struct sl_counters *sl_classifier_counters(const struct sl_classifier *c);
int sl_classifier_publish(struct sl_classifier *c);

/* Forgets all flows and fragments. */
void sl_classifier_forget(struct sl_classifier *c);

#endif
