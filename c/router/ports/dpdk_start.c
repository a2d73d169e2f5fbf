/* SPDX-License-Identifier: Apache-2.0 */
#include "router/ports/dpdk_start.h"

#include <rte_errno.h>
#include <rte_ethdev.h>

enum {
	NB_DESC = 512,             /* of each ring, if the driver agrees */
	NB_MBUF = 4 * NB_DESC,
	MBUF_DATA_LEN = 2048,      /* least: some drivers take no less */
	MTU_USUAL = 1500,
};

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
	struct sl_eal_conf eal = { .device = conf->device, .args = conf->eal, .runtime_dir = conf->runtime_dir };
	uint32_t mtu = conf->mtu ? conf->mtu : MTU_USUAL;
	struct rte_ether_addr mac;
	const char *step;
	int err;

	*dev = (struct sl_dpdk_device){ .intr_fd = -1 };
	why[0] = '\0';
	err = mtu > SL_RTR_MTU_MAX ? -EMSGSIZE : sl_eal_start(&eal, why);
	if (!err) {
		err = device_set_up(dev, mtu, &step);
		if (!err)
			err = rte_eth_macaddr_get(dev->id, &mac);
		if (err)
			snprintf(why, SL_DPDK_WHY_LEN, "step=%s error=\"%s\" hint=\"EAL's own words are above\"", step,
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
