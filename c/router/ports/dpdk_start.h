/* SPDX-License-Identifier: Apache-2.0 */
/* EAL and the device: what happens once, with root rights. For ports/dpdk.c alone. */
#ifndef SL_DPDK_START_H
#define SL_DPDK_START_H

#include "router/ports/dpdk.h"

struct rte_mempool;

struct sl_dpdk_device {
	uint16_t id;                     /* of the ethdev */
	uint32_t frame_max;              /* bytes that may be sent */
	int intr_fd;                     /* readable at a receive interrupt; -1: the driver has none. The device's */
	bool is_gone;                    /* written by EAL's interrupt thread */
	struct rte_mempool *pool;
};

/* As sl_port_dpdk_open. The device must stay where it is: EAL keeps its address. */
int sl_dpdk_device_start(struct sl_dpdk_device *dev, const struct sl_dpdk_conf *conf, struct sl_dpdk_facts *facts,
			 char why[SL_DPDK_WHY_LEN]);
void sl_dpdk_device_stop(struct sl_dpdk_device *dev);

/* Whether the device was pulled out. */
static inline bool sl_dpdk_device_is_gone(const struct sl_dpdk_device *dev)
{
	return __atomic_load_n(&dev->is_gone, __ATOMIC_RELAXED);
}

#endif
