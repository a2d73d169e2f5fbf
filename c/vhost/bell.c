/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/bell.h"

#include <linux/aio_abi.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	DONE_MAX = 64,                    /* completions left lying before they are taken away: room for half of all */
	NO_SUCH_FLAGS = -1,
};

int sl_bell_open(struct sl_bell *b)
{
	int err;

	*b = (struct sl_bell){ .carrier = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	if (b->carrier >= 0 && !syscall(SYS_io_setup, 2 * DONE_MAX, &b->context))
		return 0;
	err = -errno;
	if (b->carrier >= 0)
		close(b->carrier);
	*b = (struct sl_bell){ 0 };
	return err;
}

void sl_bell_close(struct sl_bell *b)
{
	if (!b->context)
		return;
	syscall(SYS_io_destroy, b->context);
	close(b->carrier);
	*b = (struct sl_bell){ 0 };
}

/* Too short a read: it fails at once, whatever is in the carrier, and that completes it. */
static long submit(struct sl_bell *b, int fd, __kernel_rwf_t flags)
{
	struct iocb read = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (__u32)b->carrier, .aio_rw_flags = flags,
		.aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (__u32)fd,
	};
	struct iocb *list[] = { &read };

	return syscall(SYS_io_submit, b->context, 1, list);
}

bool sl_bell_fits(struct sl_bell *b, int fd)
{
	/* the kernel looks at fd before it refuses the flags */
	return submit(b, fd, NO_SUCH_FLAGS) < 0 && errno == EOPNOTSUPP;
}

void sl_bell_ring(struct sl_bell *b, int fd)
{
	struct timespec no_time = { 0, 0 };
	struct io_event done[DONE_MAX];

	if (b->nb_done == DONE_MAX) {
		syscall(SYS_io_getevents, b->context, 0, DONE_MAX, done, &no_time);
		b->nb_done = 0;
	}
	b->nb_done += submit(b, fd, 0) == 1;
}
