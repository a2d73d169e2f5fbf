/* SPDX-License-Identifier: Apache-2.0 */
/* Adds 1 to an eventfd that is shared with somebody hostile, without ever waiting. write() can be made to wait: whether
 * it does is a flag of the open file, which all who have the descriptor share, and who shares it may clear the flag and
 * fill the counter. The kernel itself never waits when it signals an eventfd, so it is asked to: by the completion of an
 * asynchronous read of nothing (IOCB_FLAG_RESFD), which is done when the call that starts it returns.
 *
 * One bell serves any number of devices of one thread. */
#ifndef SL_VHOST_BELL_H
#define SL_VHOST_BELL_H

#include "base/base.h"

struct sl_bell {
	unsigned long context;            /* aio_context_t; 0: not open */
	int carrier;                      /* an eventfd of our own: what is read */
	uint32_t nb_done;                 /* completions that were not taken yet */
};

/* 0; -ENOSYS: a kernel without asynchronous I/O; -EAGAIN: too much of it in use (fs.aio-max-nr); -EMFILE. A failed bell
 * is as one that was never opened: all zero, and fine for sl_bell_close. */
int sl_bell_open(struct sl_bell *b);
void sl_bell_close(struct sl_bell *b);

/* Whether fd is an eventfd; nothing happens to it. */
bool sl_bell_fits(struct sl_bell *b, int fd);

/* fd is an eventfd. One whose counter is full stays so, for its owner was told already. */
void sl_bell_ring(struct sl_bell *b, int fd);

#endif
