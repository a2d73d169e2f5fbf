/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel drives the NIC: an AF_XDP socket for each of its queues. */
#include <bpf/bpf.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "router/control.h"
#include "router/nic.h"

const enum sl_privileges_kind sl_nic_privileges = SL_PRIVILEGES_OWN;

const char *sl_nic_name(const struct sl_nic_conf *conf)
{
	return conf->ifname;
}

bool sl_nic_conf_is_complete(const struct sl_nic_conf *conf)
{
	return conf->ifname && conf->xskmap && conf->queues && !conf->device;
}

/* Reads the NIC's address and MTU, and makes it receive all multicast as long as this process lives: neighbour
 * solicitations for virtual IPs go to groups that the kernel did not join. */
static int link_open(struct sl_router *r, const char *ifname)
{
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct packet_mreq all = { .mr_type = PACKET_MR_ALLMULTI };
	struct ifreq ifr = { 0 };

	if (fd < 0)
		return -errno;
	if (strlen(ifname) >= sizeof(ifr.ifr_name))
		return -ENODEV;
	memcpy(ifr.ifr_name, ifname, strlen(ifname));
	if (ioctl(fd, SIOCGIFMTU, &ifr))
		return -errno;
	r->mtu = (uint32_t)ifr.ifr_mtu;
	if (ioctl(fd, SIOCGIFHWADDR, &ifr))
		return -errno;
	if (ifr.ifr_hwaddr.sa_family != ARPHRD_ETHER)
		return -EPROTONOSUPPORT;
	memcpy(r->mac, ifr.ifr_hwaddr.sa_data, 6);
	all.mr_ifindex = (int)if_nametoindex(ifname);
	return setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all)) ? -errno : 0;
}

static const char *hint_of(int err)
{
	switch (err) {
	case -EBUSY: return "another program has this queue's AF_XDP socket: end it";
	case -EINVAL: return "no such queue, or no AF_XDP in this driver: lower the number of queues";
	case -EOPNOTSUPP: return "MTU above 3818 needs AF_XDP multi-buffer, Linux 6.6: lower the MTU or the queues";
	case -EMSGSIZE: return "MTU above 9216 is not supported: lower it";
	case -E2BIG: return "the XSKMAP has fewer entries than queues";
	case -ENOBUFS:
	case -ENOMEM: return "no memory: fewer queues, or more huge pages";
	default: return "root rights and an interface with AF_XDP are needed";
	}
}

int sl_nic_open(struct sl_router *r, const struct sl_nic_conf *nic, char why[SL_NIC_WHY_LEN])
{
	struct sl_xsk_conf conf = { .ifname = nic->ifname };
	int err = link_open(r, nic->ifname);

	if (err) {
		snprintf(why, SL_NIC_WHY_LEN, "step=interface error=\"%s\"", strerror(-err));
		return err;
	}
	conf.mtu = r->mtu;
	conf.xskmap_fd = bpf_obj_get(nic->xskmap);
	if (conf.xskmap_fd < 0) {
		err = -errno;
		snprintf(why, SL_NIC_WHY_LEN, "xskmap=%s error=\"%s\" hint=\"load the classifier first\"", nic->xskmap,
			 strerror(-err));
		return err;
	}
	for (conf.queue = 0; !err && conf.queue < nic->queues; conf.queue++) {
		err = sl_port_xsk_open(&conf, &r->nic[conf.queue]);
		if (!err)
			err = sl_event_add(r->epoll_fd, r->nic[conf.queue]->fd, SL_EVENT_NIC, conf.queue);
		if (err)
			snprintf(why, SL_NIC_WHY_LEN, "ifname=%s queue=%u mtu=%u error=\"%s\" hint=\"%s\"", nic->ifname,
				 conf.queue, r->mtu, strerror(-err), hint_of(err));
	}
	r->nb_nic = (uint16_t)nic->queues;
	close(conf.xskmap_fd);
	return err;
}
