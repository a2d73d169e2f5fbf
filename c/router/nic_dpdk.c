/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK drives the NIC, and the classifier runs here: one queue, since the router is one thread. */
#include <stdio.h>

#include "router/control.h"
#include "router/nic.h"
#include "router/ports/dpdk.h"

const enum sl_privileges_kind sl_nic_privileges = SL_PRIVILEGES_LIBRARY;

const char *sl_nic_name(const struct sl_nic_conf *conf)
{
	return conf->device;
}

bool sl_nic_conf_is_complete(const struct sl_nic_conf *conf)
{
	return conf->device && conf->pins && conf->queues <= 1 && !conf->ifname;
}

int sl_nic_open(struct sl_router *r, const struct sl_nic_conf *nic, char why[SL_NIC_WHY_LEN])
{
	struct sl_dpdk_conf conf = {
		.device = nic->device, .eal = nic->eal, .mtu = nic->mtu, .runtime_dir = nic->run_dir,
	};
	struct sl_dpdk_facts facts;
	char text[SL_DPDK_WHY_LEN];
	int err = sl_classifier_open(nic->pins, &r->classifier);

	if (err) {
		snprintf(why, SL_NIC_WHY_LEN, "pins=%s error=\"%s\" hint=\"%s\"", nic->pins, strerror(-err),
			 err == -EINVAL ? "the pinned maps are of another build: end that swarm first"
					: "load the classifier first");
		return err;
	}
	conf.classifier = r->classifier;
	err = sl_port_dpdk_open(&conf, &facts, &r->nic[0], text);
	if (!err) {
		memcpy(r->mac, facts.mac, sizeof(r->mac));
		r->mtu = facts.mtu;
		r->nb_nic = 1;
		sl_classifier_queues_set(r->classifier, 1);
		err = sl_event_add(r->epoll_fd, r->nic[0]->fd, SL_EVENT_NIC, 0);
		snprintf(text, sizeof(text), "error=\"%s\"", strerror(-err));
	}
	if (err)
		snprintf(why, SL_NIC_WHY_LEN, "device=%s %s", nic->device, text);
	return err;
}
