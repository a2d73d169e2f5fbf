/* SPDX-License-Identifier: Apache-2.0 */
/* A port on an Ethernet device that DPDK drives: a physical NIC taken from the kernel (vfio-pci, mlx5), or a virtual
 * one (net_af_packet, net_tap, net_virtio_user ...). One in a process, one receive and one transmit queue.
 *
 * Each frame is shown to the classifier in rx_burst, which returns those that are for the router, with their verdict.
 * The others end here and are counted by the classifier: there is no kernel behind this NIC that could take them (a
 * virtual device on a kernel's interface sees copies: its kernel has had the frame as well).
 *
 * Waiting: port->fd is readable all the time while frames come and SPIN_NS after the last one, so the router's loop
 * polls. Then it sleeps, for times that grow from SLEEP_MIN_NS to SLEEP_MAX_NS. There, where the driver has receive
 * interrupts, it sleeps until one comes; else it goes on looking, after IDLE_NS less often still: so the first frame
 * after a pause waits at most SLEEP_MAX_NS, after a long one SLEEP_IDLE_NS. An idle port takes less than a hundredth of
 * a core. */
#ifndef SL_PORT_DPDK_H
#define SL_PORT_DPDK_H

#include "classifier/classifier.h"
#include "dpdk/eal.h"
#include "router/ports/port.h"

enum { SL_DPDK_WHY_LEN = SL_EAL_WHY_LEN };

struct sl_dpdk_conf {
	const char *device;                 /* as EAL names it, with arguments: "0000:01:00.0", "net_tap0,iface=x" */
	const char *const *eal;             /* further arguments for EAL, at most SL_EAL_ARGS_MAX; ends with NULL */
	const char *runtime_dir;            /* EAL makes a folder dpdk in it, left to its owner */
	uint32_t mtu;                       /* bytes of IP packet; 0: 1500 */
	struct sl_classifier *classifier;
};

struct sl_dpdk_facts {
	uint8_t mac[6];
	uint32_t mtu;
};

/* Starts EAL and the device. Needs root; afterwards the drivers tested (virtual ones) need no rights. Leaves threads of
 * EAL's behind. Memory comes from free huge pages, without a file; a virtual device also does without them. Returns 0,
 * or -errno with why: key="value" pairs that say what failed and how to mend it. Can be called once in a process. */
int sl_port_dpdk_open(const struct sl_dpdk_conf *conf, struct sl_dpdk_facts *facts, struct sl_port **ret,
		      char why[SL_DPDK_WHY_LEN]);

#endif
