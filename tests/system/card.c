/* SPDX-License-Identifier: Apache-2.0 */
/* An accelerator for tests, where there is none: preloaded into swarmline-instance-dpdk, it makes one of DPDK's devices
 * of software a card that is plugged in, pulled out, and dead, as the first byte of a file says. All else is real.
 * It also makes the processor one without a fast library for records, or the card would be slower than that. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <rte_cryptodev.h>

enum { WORKS = 'w', AWAY = '-' };   /* anything else: it is there, and dead */

static const volatile char *state;
static dequeue_pkt_burst_t dequeue;

__attribute__((constructor)) static void state_map(void)
{
	const char *path = getenv("SWARMLINE_TEST_CARD");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		abort();
	close(fd);
	state = p;
}

static void *real(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

void *dlopen(const char *file, int flags)
{
	void *(*next)(const char *, int);

	*(void **)&next = real("dlopen");
	return file && strstr(file, "libIPSec_MB.so") ? NULL : next(file, flags);
}

unsigned int rte_cryptodev_is_valid_dev(uint8_t id)
{
	unsigned int (*next)(uint8_t);

	*(void **)&next = real("rte_cryptodev_is_valid_dev");
	return *state != AWAY && next(id);
}

static uint16_t card_dequeue(void *queue, struct rte_crypto_op **ops, uint16_t nb)
{
	return *state == WORKS ? dequeue(queue, ops, nb) : 0;
}

int rte_cryptodev_start(uint8_t id)
{
	int (*next)(uint8_t);
	int err;

	*(void **)&next = real("rte_cryptodev_start");
	err = next(id);
	if (!err) {
		dequeue = rte_crypto_fp_ops[id].dequeue_burst;
		rte_crypto_fp_ops[id].dequeue_burst = card_dequeue;
	}
	return err;
}
