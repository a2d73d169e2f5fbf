/* SPDX-License-Identifier: Apache-2.0 */
/* Plays the layer http on an edge to an app instance: sends requests one after the other, each after a pause in which the app falls
 * asleep, and sleeps itself until its own doorbell rings.
 * usage: http_peer EDGE_FD OWN_DOORBELL_FD APP_DOORBELL_FD APP_VM_ID REQUESTS PAUSE_US
 * Prints for each request: status, microseconds, CLOCK_MONOTONIC in ns at its end. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "abi/http.h"
#include "base/base.h"
#include "edge/edge.h"

enum { OWN_VM = 3, OWN_INCARNATION = 9, APP_INCARNATION = 7, PATIENCE_MS = 5000 };

struct peer {
	int app_bell;
	int status;      /* of the answer; -1: the flow failed */
	bool over;
};

static void count(struct sl_edge *e, enum sl_counter c)
{
	(void)e;
	if (c == SL_CNT_QUARANTINED)
		printf("quarantined\n");
}

static uint64_t request_id(struct sl_edge *e)
{
	static uint64_t last;

	(void)e;
	return (uint64_t)OWN_VM << 48 | ++last;
}

static uint32_t data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct peer *peer = f->edge->user;
	struct sl_http_response r;

	if (!peer->status && len >= sizeof(r)) {
		memcpy(&r, p, sizeof(r));
		peer->status = r.magic == SL_HTTP_MAGIC ? r.status : -1;
	}
	return len;
}

static void over(struct sl_flow *f, enum sl_request_status status)
{
	struct peer *peer = f->edge->user;

	if (status != SL_COMPLETED)
		peer->status = -(int)status;
	peer->over = true;
}

static void nothing(struct sl_flow *f)
{
	(void)f;
}

static int bell_of(void *user, uint16_t vm_id)
{
	(void)vm_id;
	return ((struct peer *)user)->app_bell;
}

static int request(struct sl_edge *e)
{
	static const char text[] = "POST/echolocalhost";
	struct {
		struct sl_http_request head;
		char text[sizeof(text) - 1];
	} m = {.head = {.magic = SL_HTTP_MAGIC, .head_len = sizeof(m.head) + sizeof(m.text), .method_off = sizeof(m.head), .method_len = 4,
			.path_off = sizeof(m.head) + 4, .path_len = 5, .authority_off = sizeof(m.head) + 9, .authority_len = 9,
			.method = SL_HTTP_POST, .version_minor = 1}};
	struct sl_flow *f;

	memcpy(m.text, text, sizeof(m.text));
	return sl_flow_open(e, 0, &m, m.head.head_len, SL_F_FIN, NULL, &f);
}

/* 0 when the answer is there, or -ETIMEDOUT */
static int answer_wait(struct sl_edge *e, const struct peer *peer, int own_bell)
{
	uint64_t deadline = sl_now_ns() + PATIENCE_MS * 1000000ull, ticks;

	while (!peer->over) {
		struct pollfd p = {.fd = own_bell, .events = POLLIN};

		if (sl_now_ns() > deadline)
			return -ETIMEDOUT;
		sl_edge_sleep_set(e, true);
		if (!sl_edge_pending(e) && poll(&p, 1, PATIENCE_MS) == 1 && read(own_bell, &ticks, sizeof(ticks)) < 0)
			return -errno;
		sl_edge_sleep_set(e, false);
		sl_edge_poll(e);
		sl_edge_turn_end(e);
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct sl_edge_ops ops = {.count = count, .request_id = request_id};
	static const struct sl_flow_ops flow_ops = {.data = data, .fin = nothing, .writable = nothing, .over = over};
	struct sl_edge_seat seat = {.edge_id = SL_LAYER_HTTP << 8 | SL_LAYER_APP, .incarnation = OWN_INCARNATION, .side = SL_FRONT,
				    .peer_layer = SL_LAYER_APP};
	struct sl_route_page page = {.seq = 2, .epoch = 1, .nb_routes = 1};
	struct peer peer = {0};
	struct sl_edge *e;

	if (argc != 7)
		return 2;
	peer.app_bell = atoi(argv[3]);
	page.routes[0] = (struct sl_route){.incarnation = APP_INCARNATION, .vm_id = (uint16_t)atoi(argv[4]), .weight = 1, .state = SL_VM_ACTIVE};
	if (sl_edge_attach(atoi(argv[1]), true, &seat, SL_LAYER_HTTP, OWN_VM, &ops, &flow_ops, &peer, &e))
		return 1;
	sl_edge_routes_set(e, &page, bell_of);
	for (int n = atoi(argv[5]); n > 0; n--) {
		uint64_t begun = sl_now_ns();
		int err;

		peer.over = false;
		peer.status = 0;
		err = request(e);
		sl_edge_turn_end(e);
		err = err ? err : answer_wait(e, &peer, atoi(argv[2]));
		if (err) {
			printf("no answer: %s\n", strerror(-err));
			return 1;
		}
		printf("%d %llu %llu\n", peer.status, (unsigned long long)(sl_now_ns() - begun) / 1000, (unsigned long long)sl_now_ns());
		usleep((useconds_t)atoi(argv[6]));
	}
	return 0;
}
