/* SPDX-License-Identifier: Apache-2.0 */
/* Steering: frames of the NIC to the instance that the classifier chose, frames of instances to their next hop. */
#ifndef SL_STEER_H
#define SL_STEER_H

#include "classifier/classifier.h"
#include "router/count.h"
#include "router/neigh.h"
#include "router/net.h"
#include "router/ports/port.h"
#include "vhost/bell.h"

struct sl_router {
	uint32_t mtu;                            /* of the NIC: bytes of IP packet */
	uint8_t mac[6];                          /* of the NIC */
	uint16_t nb_nic;
	struct sl_port *nic[SL_QUEUES_MAX];      /* one per queue; an instance sends through nic[vm_id % nb_nic] */
	uint32_t nb_vm;
	struct sl_port *vm[SL_VM_MAX];           /* by vm_id; NULL: none */
	uint64_t vips[SL_VM_MAX];                /* slots of sl_net that the instance may send from */
	struct sl_net net;
	struct sl_count count;
	struct sl_neighs neighs;
	struct sl_tap_bufs tap_bufs;
	struct sl_classifier *classifier;        /* NULL: the kernel runs it */
	struct sl_bell bell;                     /* of the vhost-user ports */
	int epoll_fd;
	uint64_t start_ns;
};

/* Receives one batch from a NIC queue and passes it on. Returns how many frames it took. */
uint32_t sl_steer_in(struct sl_router *r, struct sl_port *nic, uint64_t now_ns);

/* Receives one batch from an instance's port and sends it. Returns how many frames it took, or -errno: the port is dead
 * (its tap vanished), the caller removes it. */
int sl_steer_out(struct sl_router *r, struct sl_port *vm, uint64_t now_ns);

#endif
