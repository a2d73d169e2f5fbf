/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/guard.h"

#include <signal.h>
#include <sys/mman.h>

static struct sl_guard *guards;

/* Runs where the memory was touched, which is never while the list changes. mmap is no function of POSIX's list for
 * handlers, but a bare system call. */
static void bus_error(int number, siginfo_t *info, void *context)
{
	struct sl_guard *g;

	(void)context;
	for (g = guards; g; g = g->next) {
		if ((uintptr_t)info->si_addr - (uintptr_t)g->map >= g->len)
			continue;
		g->lost = true;
		if (mmap(g->map, g->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
			 -1, 0) != MAP_FAILED)
			return;
		break;
	}
	signal(number, SIG_DFL);   /* not ours: happens again, for the last time */
}

int sl_guard_install(void)
{
	struct sigaction action = { .sa_sigaction = bus_error, .sa_flags = SA_SIGINFO };

	return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

void sl_guard_add(struct sl_guard *g)
{
	g->next = guards;
	guards = g;
}

void sl_guard_drop(struct sl_guard *g)
{
	struct sl_guard **at;

	for (at = &guards; *at; at = &(*at)->next)
		if (*at == g) {
			*at = g->next;
			return;
		}
}
