/* SPDX-License-Identifier: Apache-2.0 */
/* rtnetlink (rtnetlink(7)) by libmnl: requests, each acknowledged by the kernel. */
#include "layers/tcp/net.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <time.h>
#include <unistd.h>

#include "abi/router.h"
#include "base/base.h"

_Static_assert(SL_LISTENERS_MAX == SL_SERVICE_MAX * 4, "as many as there are addresses");

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

static int net_open(struct sl_net *n, uint32_t mtu, int timeout_ms)
{
	int err;

	n->nl = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	if (!n->nl || mnl_socket_bind(n->nl, 0, MNL_SOCKET_AUTOPID) < 0)
		return -errno;
	n->ifindex = ifindex_wait("eth0", timeout_ms);
	n->lo = if_nametoindex("lo");
	if (!n->ifindex)
		return -ETIMEDOUT;
	err = link_up(n, n->lo, 0);
	return err ? err : link_up(n, n->ifindex, mtu);
}

static void net_close(struct sl_net *n)
{
	if (n->nl)
		mnl_socket_close(n->nl);
}

static bool is_v4(const uint8_t addr[16])
{
	static const uint8_t mapped[12] = {[10] = 0xff, 0xff};

	return !memcmp(addr, mapped, sizeof(mapped));
}

static int addr_add(struct sl_net *n, const uint8_t addr[16])
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

static int routes_add(struct sl_net *n)
{
	int err = neighbour_add(n, AF_INET, nexthop4, sizeof(nexthop4));

	err = err ? err : default_route_add(n, AF_INET, nexthop4, sizeof(nexthop4));
	err = err ? err : neighbour_add(n, AF_INET6, nexthop6, sizeof(nexthop6));
	return err ? err : default_route_add(n, AF_INET6, nexthop6, sizeof(nexthop6));
}

/* One AF_INET6 socket serves a virtual IP of either family: IPv4 as ::ffff:a.b.c.d. */
static int listener_open(const uint8_t addr[16], __be16 port, int backlog)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = port};
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, zero = 0, err;

	memcpy(&a.sin6_addr, addr, 16);
	if (fd < 0)
		return -errno;
	if (!setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)) && !setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) &&
	    !bind(fd, (void *)&a, sizeof(a)) && !listen(fd, backlog))
		return fd;
	err = -errno;
	close(fd);
	return err;
}

static int service_setup(struct sl_net *n, const struct sl_service_seat *s, int backlog, struct sl_listener *ret)
{
	static const uint8_t none[16];
	int nb = 0, err = 0;

	for (unsigned i = 0; !err && s->proto == IPPROTO_TCP && s->next_edge >= 0 && i < sl_nb(s->addr); i++) {
		if (!memcmp(s->addr[i], none, sizeof(none)))
			continue;
		err = addr_add(n, s->addr[i]);
		if (err)
			break;
		ret[nb].fd = listener_open(s->addr[i], s->port, backlog);
		if (ret[nb].fd < 0)
			err = ret[nb].fd;
		else
			nb++;
	}
	while (err && nb)
		close(ret[--nb].fd);
	return err ? err : nb;
}

void sl_net_prepare(void)
{
	struct sl_net n = {0};

	if (!net_open(&n, 0, 0))
		routes_add(&n);
	net_close(&n);
}

int sl_net_setup(const struct sl_assignment *a, int backlog, int timeout_ms, struct sl_listener *ret)
{
	struct sl_net n = {0};
	int nb = 0, err = net_open(&n, a->mtu, timeout_ms);

	for (unsigned i = 0; err >= 0 && i < SL_SERVICE_MAX; i++) {
		err = service_setup(&n, &a->services[i], backlog, ret + nb);
		for (int k = 0; k < err; k++)
			ret[nb++].service = i;
	}
	if (err >= 0)
		err = routes_add(&n);
	net_close(&n);
	while (err < 0 && nb)
		close(ret[--nb].fd);
	return err < 0 ? err : nb;
}
