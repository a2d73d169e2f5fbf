/* SPDX-License-Identifier: Apache-2.0 */
/* Client of the ivshmem protocol (version 0, as in QEMU's docs/specs/ivshmem-spec.rst): one connection for an
 * instance's life brings its control region, its own doorbells, and those of the peers that it may ring as they join and
 * leave. It has one doorbell for each peer. */
#ifndef SL_DOORBELL_H
#define SL_DOORBELL_H

#include <stddef.h>
#include <stdint.h>

#include "abi/base.h"

struct sl_doorbells {
	int sock;
	int own[SL_BELLS];         /* eventfds: readable when somebody rang us */
	unsigned nb_own;
	uint16_t vm_id;
	uint8_t part[8];           /* of a message not yet complete */
	unsigned part_len;
	int part_fd;               /* that came with it, or -1 */
	int peer[SL_VM_MAX];       /* eventfd by VMID, -1: not announced */
};

/* Reads until the own doorbells have come: version, id, control region, peers, self. Blocks at most timeout_ms. Takes
 * sock over; it is non-blocking afterwards. Returns 0 and *control_fd; -EPROTO if the server speaks something else,
 * -ETIMEDOUT, -ECONNRESET. */
int sl_doorbells_open(struct sl_doorbells *d, int sock, int timeout_ms, int *control_fd);

/* Takes in one join or leave. Returns 1 and *vm_id, *fd (-1: it left; the old eventfd is closed after the call of the
 * next), 0: nothing more now, or -errno: the server is gone (-ECONNRESET) or broke the protocol. */
int sl_doorbells_next(struct sl_doorbells *d, uint16_t *vm_id, int *fd);

#endif
