/* SPDX-License-Identifier: Apache-2.0 */
#include "dpdk/eal.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
	HUGE_WANTED = 32,     /* pages of 2 MiB */
	OWN_ARGS_MAX = 12,
};

enum kind { SOFTWARE, PHYSICAL, LATER };

/* Free huge pages of any size that EAL takes, in units of 2 MiB. */
static unsigned long huge_free(void)
{
	static const struct { const char *path; unsigned long units; } sizes[] = {
		{ "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 1 },
		{ "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", 512 },
	};
	unsigned long sum = 0, n;
	size_t i;

	for (i = 0; i < sl_nb(sizes); i++) {
		FILE *f = fopen(sizes[i].path, "r");

		if (!f)
			continue;
		if (fscanf(f, "%lu", &n) == 1)
			sum += n * sizes[i].units;
		fclose(f);
	}
	return sum;
}

static enum kind kind_of(const char *device)
{
	if (!device)
		return LATER;
	if (!strncmp(device, "net_", 4) || !strncmp(device, "eth_", 4) || !strncmp(device, "crypto_", 7))
		return SOFTWARE;
	return PHYSICAL;
}

static bool huge_enough(enum kind kind, char *why)
{
	unsigned wanted = kind == PHYSICAL ? HUGE_WANTED : kind == LATER ? SL_EAL_LATER_MB / 2 : 0;

	if (!wanted || huge_free() >= wanted)
		return true;
	snprintf(why, SL_EAL_WHY_LEN, "error=\"%u free huge pages of 2 MiB are needed\" "
		 "hint=\"sysctl vm.nr_hugepages\"", wanted);
	return false;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

/* What EAL is told of a kind of device; returns how many words. One of software needs no huge page: others wait for
 * them. For those that come later all memory is taken now, and no more: behind the walls there is none to be had. */
static int kind_args(enum kind kind, char **argv)
{
	static const char *const words[][5] = {
		[SOFTWARE] = { "--no-pci", "--no-shconf", "--no-huge", "-m64" },
		[PHYSICAL] = { "--in-memory" },
		[LATER] = { "--in-memory", "--iova-mode=pa", "-m" TEXT(SL_EAL_LATER_MB),
			    "--socket-limit=" TEXT(SL_EAL_LATER_MB) },
	};
	int n = 0;

	for (; words[kind][n]; n++)
		argv[n] = (char *)(uintptr_t)words[kind][n];   /* getopt changes their order only */
	return n;
}

/* EAL copies what it keeps. It pins the calling thread to a core: where that runs is not EAL's business, so that is
 * taken back. */
int sl_eal_start(const struct sl_eal_conf *conf, char why[SL_EAL_WHY_LEN])
{
	char *argv[OWN_ARGS_MAX + SL_EAL_ARGS_MAX] = { "swarmline", "--no-telemetry", "--log-level=lib.eal:error" };
	char lcores[32], device[SL_EAL_DEVICE_MAX];
	enum kind kind = kind_of(conf->device);
	int argc = 3, cpu = 0, i;
	cpu_set_t cpus;

	if (!huge_enough(kind, why))
		return -ENOMEM;
	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		return -errno;
	while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &cpus))
		cpu++;
	snprintf(lcores, sizeof(lcores), "--lcores=0@%d", cpu);
	argv[argc++] = lcores;
	if (conf->device) {
		i = snprintf(device, sizeof(device), kind == PHYSICAL ? "--allow=%s" : "--vdev=%s", conf->device);
		if (i >= (int)sizeof(device))
			return -ENAMETOOLONG;
		argv[argc++] = device;
	}
	argc += kind_args(kind, argv + argc);
	for (i = 0; conf->args && conf->args[i] && i < SL_EAL_ARGS_MAX; i++)
		argv[argc++] = (char *)(uintptr_t)conf->args[i];   /* getopt changes their order only */
	if (setenv("RUNTIME_DIRECTORY", conf->runtime_dir, 1))
		return -errno;
	rte_openlog_stream(stderr);
	rte_log_set_global_level(RTE_LOG_WARNING);
	i = rte_eal_init(argc, argv);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (i >= 0)
		return 0;
	snprintf(why, SL_EAL_WHY_LEN, "step=eal error=\"%s\" hint=\"EAL's own words are above\"",
		 rte_strerror(rte_errno));
	return rte_errno ? -rte_errno : -ENODEV;
}
