/* SPDX-License-Identifier: Apache-2.0 */
#include "router/ports/dpdk_start.h"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_log.h>
#include <sched.h>
#include <unistd.h>

enum {
	NB_DESC = 512,             /* of each ring, if the driver agrees */
	NB_MBUF = 4 * NB_DESC,
	MBUF_DATA_LEN = 2048,      /* least: some drivers take no less */
	MTU_USUAL = 1500,
	HUGE_WANTED = 32,          /* pages of 2 MiB */
	ARGS_MAX = 16,
};

__attribute__((format(printf, 2, 3))) static void tell(char why[SL_DPDK_WHY_LEN], const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, SL_DPDK_WHY_LEN, fmt, args);
	va_end(args);
}

/* ---- EAL --------------------------------------------------------------------------------------------------------- */

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

static bool is_virtual(const char *device)
{
	return !strncmp(device, "net_", 4) || !strncmp(device, "eth_", 4);
}

/* EAL may keep its arguments, so they are never freed. It pins the calling thread to a core: where the router runs is
 * not EAL's business, so that is taken back. */
static int eal_start(const struct sl_dpdk_conf *conf, char why[SL_DPDK_WHY_LEN])
{
	bool is_huge = !is_virtual(conf->device);   /* a device of software needs none, others may be waiting for them */
	char *argv[ARGS_MAX + SL_DPDK_EAL_MAX] = { "swarmline-router", "--no-telemetry", "--log-level=lib.eal:error" };
	int argc = 3, cpu = 0, i;
	cpu_set_t cpus;

	if (is_huge && huge_free() < HUGE_WANTED) {
		tell(why, "error=\"%u free huge pages of 2 MiB are needed\" hint=\"sysctl vm.nr_hugepages\"", HUGE_WANTED);
		return -ENOMEM;
	}
	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		return -errno;
	while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &cpus))
		cpu++;
	if (asprintf(&argv[argc++], "--lcores=0@%d", cpu) < 0 ||
	    asprintf(&argv[argc++], is_huge ? "--allow=%s" : "--vdev=%s", conf->device) < 0)
		return -ENOMEM;
	if (is_huge) {
		argv[argc++] = "--in-memory";
	} else {
		argv[argc++] = "--no-pci";
		argv[argc++] = "--no-shconf";
		argv[argc++] = "--no-huge";
		argv[argc++] = "-m64";
	}
	for (i = 0; conf->eal[i] && i < SL_DPDK_EAL_MAX; i++)
		argv[argc++] = strdup(conf->eal[i]);
	if (setenv("RUNTIME_DIRECTORY", conf->runtime_dir, 1))
		return -errno;
	rte_openlog_stream(stderr);
	rte_log_set_global_level(RTE_LOG_WARNING);
	i = rte_eal_init(argc, argv);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (i >= 0)
		return 0;
	tell(why, "step=eal error=\"%s\" hint=\"EAL's own words are above\"", rte_strerror(rte_errno));
	return rte_errno ? -rte_errno : -ENODEV;
}

/* ---- device ------------------------------------------------------------------------------------------------------ */

static int removed(uint16_t id, enum rte_eth_event_type event, void *arg, void *unused)
{
	struct sl_dpdk_device *dev = arg;

	(void)id;
	(void)event;
	(void)unused;
	__atomic_store_n(&dev->is_gone, true, __ATOMIC_RELAXED);
	return 0;
}

static int pool_make(struct sl_dpdk_device *dev, uint32_t mtu)
{
	uint32_t room = sl_max(mtu + SL_ETH_LEN + SL_VLAN_MAX + 4, (uint32_t)MBUF_DATA_LEN) + RTE_PKTMBUF_HEADROOM;

	dev->pool = rte_pktmbuf_pool_create("swarmline", NB_MBUF, 0, 0, (uint16_t)RTE_ALIGN(room, 64u), SOCKET_ID_ANY);
	return dev->pool ? 0 : -rte_errno;
}

/* With receive interrupts if the driver agrees, else without. */
static int configure(struct sl_dpdk_device *dev, uint32_t mtu)
{
	struct rte_eth_conf conf = { .rxmode.mtu = mtu, .intr_conf.rxq = 1 };

	if (!rte_eth_dev_configure(dev->id, 1, 1, &conf))
		return 0;
	conf.intr_conf.rxq = 0;
	return rte_eth_dev_configure(dev->id, 1, 1, &conf);
}

static int queues_make(struct sl_dpdk_device *dev)
{
	uint16_t nb_rx = NB_DESC, nb_tx = NB_DESC;
	int err = rte_eth_dev_adjust_nb_rx_tx_desc(dev->id, &nb_rx, &nb_tx);

	if (!err)
		err = rte_eth_rx_queue_setup(dev->id, 0, nb_rx, SOCKET_ID_ANY, NULL, dev->pool);
	return err ? err : rte_eth_tx_queue_setup(dev->id, 0, nb_tx, SOCKET_ID_ANY, NULL);
}

/* Neighbour solicitations for virtual IPs go to multicast groups. */
static int multicast_take(struct sl_dpdk_device *dev)
{
	return rte_eth_allmulticast_enable(dev->id) ? rte_eth_promiscuous_enable(dev->id) : 0;
}

/* Whether interrupts work is known only by trying: some drivers give a descriptor and can not be asked. */
static void interrupt_open(struct sl_dpdk_device *dev)
{
	dev->intr_fd = -1;
	if (rte_eth_dev_rx_intr_enable(dev->id, 0))
		return;
	rte_eth_dev_rx_intr_disable(dev->id, 0);
	dev->intr_fd = rte_eth_dev_rx_intr_ctl_q_get_fd(dev->id, 0);
}

static int device_find(struct sl_dpdk_device *dev)
{
	RTE_ETH_FOREACH_DEV(dev->id)
		return 0;
	return -ENODEV;
}

static int device_set_up(struct sl_dpdk_device *dev, uint32_t mtu, const char **step)
{
	static const struct {
		const char *name;
		int (*run)(struct sl_dpdk_device *dev);
	} steps[] = { { "queues", queues_make }, { "multicast", multicast_take } };
	size_t i;
	int err;

	*step = "find";
	err = device_find(dev);
	if (err)
		return err;
	*step = "memory";
	err = pool_make(dev, mtu);
	if (err)
		return err;
	*step = "configure";
	err = configure(dev, mtu);
	for (i = 0; !err && i < sl_nb(steps); i++) {
		*step = steps[i].name;
		err = steps[i].run(dev);
	}
	if (err)
		return err;
	*step = "start";
	rte_eth_dev_callback_register(dev->id, RTE_ETH_EVENT_INTR_RMV, removed, dev);
	return rte_eth_dev_start(dev->id);
}

int sl_dpdk_device_start(struct sl_dpdk_device *dev, const struct sl_dpdk_conf *conf, struct sl_dpdk_facts *facts,
			 char why[SL_DPDK_WHY_LEN])
{
	uint32_t mtu = conf->mtu ? conf->mtu : MTU_USUAL;
	struct rte_ether_addr mac;
	const char *step;
	int err;

	*dev = (struct sl_dpdk_device){ .intr_fd = -1 };
	why[0] = '\0';
	err = mtu > SL_RTR_MTU_MAX ? -EMSGSIZE : eal_start(conf, why);
	if (!err) {
		err = device_set_up(dev, mtu, &step);
		if (!err)
			err = rte_eth_macaddr_get(dev->id, &mac);
		if (err)
			tell(why, "step=%s error=\"%s\" hint=\"EAL's own words are above\"", step,
			     err == -ENODEV ? "no Ethernet device came of it" : rte_strerror(-err));
	}
	if (err)
		return err;
	interrupt_open(dev);
	memcpy(facts->mac, mac.addr_bytes, sizeof(facts->mac));
	facts->mtu = mtu;
	dev->frame_max = mtu + SL_ETH_LEN + SL_VLAN_MAX;
	return 0;
}

void sl_dpdk_device_stop(struct sl_dpdk_device *dev)
{
	rte_eth_dev_stop(dev->id);
	rte_eth_dev_close(dev->id);
	rte_mempool_free(dev->pool);
}
