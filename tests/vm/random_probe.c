/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded into the instance of a guest: shows OpenSSL's random numbers before and after the instance reseeds. Its generators are
 * made to live before, so that a snapshot contains them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static void show(const char *when)
{
	unsigned char bytes[32];
	char text[65];

	if (RAND_bytes(bytes, sizeof(bytes)) != 1)
		return;
	for (unsigned i = 0; i < sizeof(bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	fprintf(stderr, "random %s %s\n", when, text);
}

/* The instance's first act in its own process. */
int eventfd(unsigned int count, int flags)
{
	show("at start");
	return (int)syscall(SYS_eventfd2, count, flags);
}

int RAND_poll(void)
{
	int (*real)(void) = (int (*)(void))dlsym(RTLD_NEXT, "RAND_poll");
	int r;

	show("before");
	r = real();
	show("after");
	return r;
}
