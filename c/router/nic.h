/* SPDX-License-Identifier: Apache-2.0 */
/* How the router comes to its NIC: one file for each way, and one program for each file. nic_xsk.c: the kernel drives
 * the NIC and runs the classifier; swarmline-router. nic_dpdk.c: DPDK drives it and the classifier runs here;
 * swarmline-router-dpdk. */
#ifndef SL_NIC_H
#define SL_NIC_H

#include "router/privileges.h"
#include "router/steer.h"

enum { SL_NIC_EAL_MAX = 32, SL_NIC_WHY_LEN = 384 };

struct sl_nic_conf {
	const char *run_dir;                    /* of the swarm */
	const char *ifname;                     /* AF_XDP: the interface, */
	const char *xskmap;                     /* and the pin of the classifier's map of sockets */
	uint32_t queues;
	const char *device;                     /* DPDK: device and its arguments (dpdk/eal.h), */
	const char *pins;                       /* and the folder of the classifier's pins */
	const char *eal[SL_NIC_EAL_MAX + 1];    /* further arguments for EAL; ends with NULL */
	uint32_t mtu;                           /* DPDK: 0 = 1500. AF_XDP: the interface's own counts */
};

/* What the NIC is called in the log, for messages. */
const char *sl_nic_name(const struct sl_nic_conf *conf);

/* Whether conf has what this program needs. */
bool sl_nic_conf_is_complete(const struct sl_nic_conf *conf);

/* Opens the NIC's ports into r->nic, adds them to r->epoll_fd, fills r->mac, r->mtu, r->nb_nic and r->classifier. Needs
 * root. 0, or -errno with why: key=value pairs of a log line. What was opened is released at exit. */
int sl_nic_open(struct sl_router *r, const struct sl_nic_conf *conf, char why[SL_NIC_WHY_LEN]);

/* How the sandbox must be for this way. */
extern const enum sl_privileges_kind sl_nic_privileges;

#endif
