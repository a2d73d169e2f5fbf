/* SPDX-License-Identifier: Apache-2.0 */
/* rtnetlink (rtnetlink(7)) by libmnl: five requests, each acknowledged by the kernel. */
#include "layers/tcp/net.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdlib.h>
#include <time.h>

#include "abi/router.h"
#include "base/base.h"

struct sl_net {
	struct mnl_socket *nl;
	unsigned ifindex, lo;
	uint32_t seq;
	uint8_t buf[1024];
};

static const uint8_t nexthop4[4] = {SL_RTR_NEXTHOP4_0 >> 8, SL_RTR_NEXTHOP4_0 & 255, SL_RTR_NEXTHOP4_1 >> 8, SL_RTR_NEXTHOP4_1 & 255};
static const uint8_t nexthop6[16] = {[0] = SL_RTR_NEXTHOP6_0 >> 8, SL_RTR_NEXTHOP6_0 & 255,
				     [14] = SL_RTR_NEXTHOP6_7 >> 8, SL_RTR_NEXTHOP6_7 & 255};
static const uint8_t nexthop_mac[6] = {SL_RTR_MAC_0 >> 8, SL_RTR_MAC_0 & 255, SL_RTR_MAC_1 >> 8,
				       SL_RTR_MAC_1 & 255, SL_RTR_MAC_2 >> 8, SL_RTR_MAC_2 & 255};

static struct nlmsghdr *request(struct sl_net *n, uint16_t type, uint16_t flags, size_t body_len, void **body)
{
	struct nlmsghdr *h = mnl_nlmsg_put_header(n->buf);

	h->nlmsg_type = type;
	h->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	h->nlmsg_seq = ++n->seq;
	*body = mnl_nlmsg_put_extra_header(h, body_len);
	return h;
}

static int transact(struct sl_net *n, struct nlmsghdr *h)
{
	uint8_t reply[4096];   /* an acknowledgement repeats at most the request */
	ssize_t len;

	if (mnl_socket_sendto(n->nl, h, h->nlmsg_len) < 0)
		return -errno;
	len = mnl_socket_recvfrom(n->nl, reply, sizeof(reply));
	if (len < 0)
		return -errno;
	return mnl_cb_run(reply, (size_t)len, n->seq, mnl_socket_get_portid(n->nl), NULL, NULL) < 0 ? -errno : 0;
}

/* mtu: 0 leaves it as it is. */
static int link_up(struct sl_net *n, unsigned ifindex, uint32_t mtu)
{
	struct ifinfomsg *m;
	struct nlmsghdr *h = request(n, RTM_NEWLINK, 0, sizeof(*m), (void **)&m);

	m->ifi_index = (int)ifindex;
	m->ifi_flags = m->ifi_change = IFF_UP;
	if (mtu)
		mnl_attr_put_u32(h, IFLA_MTU, mtu);
	return transact(n, h);
}

static unsigned ifindex_wait(const char *name, int timeout_ms)
{
	static const struct timespec step = {.tv_nsec = 1000000};
	uint64_t deadline = sl_now_ns() + (uint64_t)timeout_ms * 1000000;
	unsigned i;

	while (!(i = if_nametoindex(name)) && sl_now_ns() < deadline)
		nanosleep(&step, NULL);
	return i;
}

int sl_net_open(uint32_t mtu, int timeout_ms, struct sl_net **ret)
{
	struct sl_net *n = calloc(1, sizeof(*n));
	int err = -ENOMEM;

	if (!n)
		return -ENOMEM;
	n->nl = mnl_socket_open(NETLINK_ROUTE);
	if (!n->nl || mnl_socket_bind(n->nl, 0, MNL_SOCKET_AUTOPID) < 0) {
		err = -errno;
		goto fail;
	}
	n->ifindex = ifindex_wait("eth0", timeout_ms);
	n->lo = if_nametoindex("lo");
	if (!n->ifindex) {
		err = -ETIMEDOUT;
		goto fail;
	}
	err = link_up(n, n->lo, 0);
	err = err ? err : link_up(n, n->ifindex, mtu);
	if (err)
		goto fail;
	*ret = n;
	return 0;
fail:
	sl_net_close(n);
	return err;
}

void sl_net_close(struct sl_net *n)
{
	if (!n)
		return;
	if (n->nl)
		mnl_socket_close(n->nl);
	free(n);
}

static bool is_v4(const uint8_t addr[16])
{
	static const uint8_t mapped[12] = {[10] = 0xff, 0xff};

	return !memcmp(addr, mapped, sizeof(mapped));
}

int sl_net_addr_add(struct sl_net *n, const uint8_t addr[16])
{
	struct ifaddrmsg *m;
	struct nlmsghdr *h = request(n, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*m), (void **)&m);
	bool v4 = is_v4(addr);
	const uint8_t *bytes = v4 ? addr + 12 : addr;
	size_t len = v4 ? 4 : 16;

	m->ifa_family = v4 ? AF_INET : AF_INET6;
	m->ifa_prefixlen = v4 ? 32 : 128;
	m->ifa_index = n->ifindex;
	m->ifa_scope = RT_SCOPE_UNIVERSE;
	mnl_attr_put(h, IFA_LOCAL, len, bytes);
	mnl_attr_put(h, IFA_ADDRESS, len, bytes);
	mnl_attr_put_u32(h, IFA_FLAGS, IFA_F_NODAD);   /* nobody else is on this link */
	return transact(n, h);
}

static int neighbour_add(struct sl_net *n, int family, const uint8_t *addr, size_t len)
{
	struct ndmsg *m;
	struct nlmsghdr *h = request(n, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*m), (void **)&m);

	m->ndm_family = (__u8)family;
	m->ndm_ifindex = (int)n->ifindex;
	m->ndm_state = NUD_PERMANENT;
	mnl_attr_put(h, NDA_DST, len, addr);
	mnl_attr_put(h, NDA_LLADDR, sizeof(nexthop_mac), nexthop_mac);
	return transact(n, h);
}

static int default_route_add(struct sl_net *n, int family, const uint8_t *gateway, size_t len)
{
	struct rtmsg *m;
	struct nlmsghdr *h = request(n, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*m), (void **)&m);

	m->rtm_family = (unsigned char)family;
	m->rtm_table = RT_TABLE_MAIN;
	m->rtm_protocol = RTPROT_STATIC;
	m->rtm_type = RTN_UNICAST;
	m->rtm_flags = RTNH_F_ONLINK;   /* the next hop is in no prefix of the interface */
	mnl_attr_put(h, RTA_GATEWAY, len, gateway);
	mnl_attr_put_u32(h, RTA_OIF, n->ifindex);
	return transact(n, h);
}

int sl_net_routes_add(struct sl_net *n)
{
	int err = neighbour_add(n, AF_INET, nexthop4, sizeof(nexthop4));

	err = err ? err : default_route_add(n, AF_INET, nexthop4, sizeof(nexthop4));
	err = err ? err : neighbour_add(n, AF_INET6, nexthop6, sizeof(nexthop6));
	return err ? err : default_route_add(n, AF_INET6, nexthop6, sizeof(nexthop6));
}
