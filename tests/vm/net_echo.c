/* SPDX-License-Identifier: Apache-2.0 */
/* The first process of a guest that is a plain server behind a virtio-net device: loads the image's modules, gives eth0
 * an address and the router as next hop (c/abi/router.h), and echoes what clients send to port 80 by TCP, and
 * datagrams to it.
 * Kernel argument: sl_net=ADDRESS. "again" on the serial line unbinds the device's driver and binds it again. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HOP "169.254.77.1"

enum { FIXED = 3, CONNS = 64, BUF = 1 << 16 };

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	printf("failed: %s: %s\n", what, strerror(errno));
	for (;;)
		pause();
}

static void modules_load(void)
{
	struct dirent **list;
	char path[300];
	int i, fd, n = scandir("/modules", &list, NULL, alphasort);

	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "/modules/%s", list[i]->d_name);
		fd = open(path, O_RDONLY);
		if (list[i]->d_name[0] != '.' && syscall(SYS_finit_module, fd, "", 0))
			printf("module %s: %s\n", path, strerror(errno));
		close(fd);
	}
}

static void address_set(struct sockaddr *to, const char *text)
{
	struct sockaddr_in *in = (struct sockaddr_in *)to;

	*in = (struct sockaddr_in){ .sin_family = AF_INET };
	inet_pton(AF_INET, text, &in->sin_addr);
}

static void route_add(int fd, const char *to, const char *mask, const char *via)
{
	char eth0[] = "eth0";
	struct rtentry rt = { .rt_flags = RTF_UP, .rt_dev = eth0 };

	address_set(&rt.rt_dst, to);
	address_set(&rt.rt_genmask, mask);
	if (via) {
		rt.rt_flags |= RTF_GATEWAY;
		address_set(&rt.rt_gateway, via);
	}
	must(ioctl(fd, SIOCADDRT, &rt), "route");
}

static void net_set(const char *address)
{
	static const unsigned char mac[] = { 0x02, 0x73, 0x6c, 0, 0, 1 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq ifr = { .ifr_name = "eth0" };
	struct arpreq arp = { .arp_flags = ATF_COM | ATF_PERM, .arp_dev = "eth0" };

	address_set(&ifr.ifr_addr, address);
	must(ioctl(fd, SIOCSIFADDR, &ifr), "address");
	address_set(&ifr.ifr_addr, "255.255.255.255");
	must(ioctl(fd, SIOCSIFNETMASK, &ifr), "mask");
	ifr.ifr_flags = IFF_UP;
	must(ioctl(fd, SIOCSIFFLAGS, &ifr), "up");
	address_set(&arp.arp_pa, HOP);
	memcpy(arp.arp_ha.sa_data, mac, sizeof(mac));
	route_add(fd, HOP, "255.255.255.255", NULL);
	must(ioctl(fd, SIOCSARP, &arp), "neighbour");
	route_add(fd, "0.0.0.0", "0.0.0.0", HOP);
	close(fd);
}

static void address_find(char text[64])
{
	char line[2048] = "";
	int fd = open("/proc/cmdline", O_RDONLY);
	const char *at;

	must(read(fd, line, sizeof(line) - 1) > 0 ? 0 : -1, "command line");
	close(fd);
	at = strstr(line, "sl_net=");
	must(at && sscanf(at, "sl_net=%63[0-9.]", text) == 1 ? 0 : -1, "sl_net");
}

static void driver_again(const char *address)
{
	static const char *const files[] = { "unbind", "bind" };
	char path[80];
	int i, fd;

	for (i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/sys/bus/virtio/drivers/virtio_net/%s", files[i]);
		fd = open(path, O_WRONLY);
		must((int)write(fd, "virtio0", 7), files[i]);
		close(fd);
	}
	net_set(address);
	printf("bound anew\n");
}

static int socket_open(int type)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(80) };
	int fd = socket(AF_INET, type, 0);

	must(bind(fd, (struct sockaddr *)&any, sizeof(any)), "bind");
	must(type == SOCK_STREAM ? listen(fd, 16) : 0, "listen");
	return fd;
}

static void datagram_echo(int fd)
{
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	char buf[2048];
	ssize_t n = recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &from_len);

	if (n >= 0 && sendto(fd, buf, (size_t)n, 0, (struct sockaddr *)&from, from_len) < 0)
		return;
}

static void echo(struct pollfd *p)
{
	static char buf[BUF];
	ssize_t n = read(p->fd, buf, sizeof(buf)), at, done;

	for (at = 0; at < n; at += done) {
		done = write(p->fd, buf + at, (size_t)(n - at));
		if (done <= 0)
			break;
	}
	if (n > 0 && at == n)
		return;
	close(p->fd);
	p->fd = -1;
}

static void serve(const char *address)
{
	struct pollfd p[FIXED + CONNS] = {
		{ 0, POLLIN, 0 }, { socket_open(SOCK_STREAM), POLLIN, 0 }, { socket_open(SOCK_DGRAM), POLLIN, 0 },
	};
	char line[16];
	int i;

	for (i = FIXED; i < FIXED + CONNS; i++)
		p[i] = (struct pollfd){ -1, POLLIN, 0 };
	printf("serving\n");
	for (;;) {
		poll(p, FIXED + CONNS, -1);
		if (p[0].revents && read(0, line, sizeof(line)) > 0)
			driver_again(address);
		if (p[2].revents)
			datagram_echo(p[2].fd);
		for (i = FIXED; p[1].revents && i < FIXED + CONNS; i++)
			if (p[i].fd < 0) {
				p[i].fd = accept(p[1].fd, NULL, NULL);
				p[i].revents = 0;
				break;
			}
		for (i = FIXED; i < FIXED + CONNS; i++)
			if (p[i].fd >= 0 && p[i].revents)
				echo(&p[i]);
	}
}

int main(void)
{
	char address[64];

	setlinebuf(stdout);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	modules_load();
	address_find(address);
	net_set(address);
	serve(address);
}
