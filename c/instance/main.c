/* SPDX-License-Identifier: Apache-2.0 */
/* swarmline-instance: one VM's worth of one layer. It boots without any, and becomes what its assignment says. See
 * instance/layer.h for a layer's life. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "instance/guest.h"
#include "instance/instance.h"

enum { START_TIMEOUT_MS = 10000 };

struct args {
	int ivshmem_fd, grants_fd;
	unsigned vm_id;
	const char *accelerator;
	struct sl_sandbox sandbox;
};

static const char usage[] =
	"usage: swarmline-instance --vm-id=N --ivshmem-fd=FD --grants-fd=FD --pid-fd=FD --uid=U --gid=G [--run-dir=DIR]\n"
	"       [--accelerator=DEVICE]    of DPDK, for tls: swarmline-instance-dpdk\n"
	"or, as the first process of a guest: swarmline-instance [--accelerator=DEVICE]\n"
	"Started by the Swarm Manager: runs one protocol layer in a sandbox of its own. See c/README.md.\n";

static int args_parse(int argc, char **argv, struct args *a)
{
	static const struct option options[] = {
		{"run-dir", required_argument, NULL, 'd'},    {"vm-id", required_argument, NULL, 'v'},
		{"ivshmem-fd", required_argument, NULL, 'i'}, {"grants-fd", required_argument, NULL, 'r'},
		{"pid-fd", required_argument, NULL, 'p'},     {"uid", required_argument, NULL, 'u'},
		{"gid", required_argument, NULL, 'g'},        {"accelerator", required_argument, NULL, 'a'},
		{"help", no_argument, NULL, 'h'},             {NULL, 0, NULL, 0},
	};
	unsigned given = 0;

	for (int o; (o = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		unsigned n = optarg ? (unsigned)strtoul(optarg, NULL, 10) : 0;

		switch (o) {
		case 'a': a->accelerator = optarg; break;
		case 'd': break;   /* for whoever reads the process list */
		case 'v': a->vm_id = n; given |= 1; break;
		case 'i': a->ivshmem_fd = (int)n; given |= 2; break;
		case 'r': a->grants_fd = (int)n; given |= 4; break;
		case 'p': a->sandbox.pid_fd = (int)n; given |= 8; break;
		case 'u': a->sandbox.uid = n; given |= 16; break;
		case 'g': a->sandbox.gid = n; given |= 32; break;
		default: return o == 'h' ? 1 : -EINVAL;
		}
	}
	return given == 63 ? 0 : -EINVAL;
}

static int prepare(struct sl_runner *r, const struct args *a)
{
	int err = sl_doorbells_open(&r->doorbells, a->ivshmem_fd, START_TIMEOUT_MS, &r->control_fd);

	if (err)
		return sl_instance_fail(&r->inst, -err, "ivshmem server: %s", strerror(-err));
	r->grants_sock = a->grants_fd;
	return sl_control_attach(r);
}

static int confine(struct sl_runner *r, const struct args *a)
{
	int err = sl_sandbox_enter(&a->sandbox);

	if (err)
		return sl_instance_fail(&r->inst, -err, "namespaces: %s", strerror(-err));
	sl_accelerator_load(r, a->accelerator);
	err = sl_layers_load(r);
	if (err)
		return err;
	/* of the process that goes on: an epoll set made before the fork would be shared with its parent */
	r->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (r->epfd < 0)
		return sl_instance_fail(&r->inst, errno, "epoll: %s", strerror(errno));
	err = sl_sandbox_close();
	return err ? sl_instance_fail(&r->inst, -err, "sandbox: %s", strerror(-err)) : 0;
}

static int run(struct sl_runner *r, const struct args *a)
{
	int err = prepare(r, a);

	err = err ? err : confine(r, a);
	err = err ? err : sl_loop_run(r);
	if (err && r->status) {
		r->inst.state = SL_VM_FAILED;
		sl_status_publish(r, true);
	}
	return err;
}

int main(int argc, char **argv)
{
	struct args a = {.ivshmem_fd = -1};
	struct sl_runner *r;
	int err = args_parse(argc, argv, &a);

	if (err < 0 && a.ivshmem_fd < 0 && getpid() == 1)   /* the kernel of a guest has started us */
		return sl_guest_main(a.accelerator);
	if (err) {
		fputs(usage, err > 0 ? stdout : stderr);
		return err > 0 ? 0 : 2;
	}
	r = calloc(1, sizeof(*r));
	if (!r)
		return 1;
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);   /* a full log is no reason to die */
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":%u", a.vm_id);
	return run(r, &a) ? 1 : 0;
}
