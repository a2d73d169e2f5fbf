/* SPDX-License-Identifier: Apache-2.0 */
/* A peer on an edge for programs that are no layers: tests and tools. One level below flows: entries and their data,
 * copied in and out. Read by cffi too, so: declarations only.
 *
 * Order of use: open, routes, then in turns send, signal, recv. One thread owns it. */
#ifndef SL_EDGE_PEER_H
#define SL_EDGE_PEER_H

#include "abi/control.h"

struct sl_edge_peer;

/* Takes the seat in the region behind fd (errors as sl_edge_attach). layer: the own one. */
int sl_edge_peer_open(int fd, const struct sl_edge_seat *seat, __u8 layer, __u16 vm_id, struct sl_edge_peer **ret);
void sl_edge_peer_close(struct sl_edge_peer *p);

/* Who is across, as in a control region's route page. doorbells[i] is the eventfd of routes[i], or -1. */
void sl_edge_peer_routes(struct sl_edge_peer *p, const struct sl_route_page *page, const int *doorbells);

/* Sends an entry with a copy of len bytes to vm_id, or (0) to whom select_best_vm names: op, flags, status, flow_id and
 * request_id of *head are taken. Returns the receiver's VMID, -ENETUNREACH no such active receiver, -EAGAIN no room
 * now, -EMSGSIZE. It is published by signal. */
int sl_edge_peer_send(struct sl_edge_peer *p, __u16 vm_id, const struct sl_request_packet *head, const void *data,
		      __u32 len);

/* Publishes what was sent and completed, rings sleepers. Returns the number of doorbells rung. */
__u32 sl_edge_peer_signal(struct sl_edge_peer *p);

/* Takes the next entry, checked, with a private copy of its data (cap bytes at most, the rest is cut off), and
 * completes it with status. Returns 1 and *packet, 0: nothing there. */
int sl_edge_peer_recv(struct sl_edge_peer *p, __u16 status, struct sl_request_packet *packet, void *data, __u32 cap);

/* Announces sleep: the next entries ring our doorbell. Returns 1 if something came meanwhile, then do not sleep. */
int sl_edge_peer_sleep(struct sl_edge_peer *p, int asleep);

/* Entries sent and not completed, and how often something was turned away (enum sl_counter). */
__u32 sl_edge_peer_outstanding(const struct sl_edge_peer *p);
__u64 sl_edge_peer_counter(const struct sl_edge_peer *p, __u32 counter);

#endif
