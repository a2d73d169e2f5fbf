/* SPDX-License-Identifier: Apache-2.0 */
/* The app layer: static files and /echo. A flow is one request; it comes as a parsed message (abi/http.h) from http,
 * which is not trusted: a message of the wrong form, or a body of another length than announced, resets the flow. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "layers/app/app.h"

static void request_free(struct sl_app_request *r)
{
	sl_answer_drop(&r->answer);
	sl_list_unlink(&r->node);
	sl_list_append(r->app->free.next, &r->node);   /* in front: the one used last is still in the CPU's cache */
	if (r->file)
		sl_app_file_put(r->file);
	r->file = NULL;
	r->app->inst->active_flows--;
}

void sl_app_abort(struct sl_app_request *r, enum sl_request_status status)
{
	sl_trace_flow(r->flow, SL_TRACE_DONE, 0);
	sl_flow_reset(r->flow, status);
	request_free(r);
}

static void message_bad(struct sl_app_request *r)
{
	r->app->inst->counters[SL_CNT_BAD_MESSAGE]++;
	sl_app_abort(r, SL_ERROR_PROTOCOL);
}

/* Bytes of the body into p. Returns how many, 0: the file has shrunk or can not be read. */
static uint32_t body_fill(struct sl_app_request *r, uint8_t *p, uint32_t room)
{
	ssize_t n;

	if (r->shown_len) {
		n = sl_min(room, r->shown_len);
		memcpy(p, r->shown, (size_t)n);
		r->shown += n;
		r->shown_len -= (uint32_t)n;
		return (uint32_t)n;
	}
	n = pread(r->file->fd, p, sl_min(room, r->end - r->pos), (off_t)r->pos);
	if (n <= 0)
		return 0;
	r->pos += (uint64_t)n;
	return (uint32_t)n;
}

void sl_app_push(struct sl_app_request *r)
{
	while (r->held_pos < r->held_len || r->pos < r->end || r->shown_len) {
		uint32_t held = r->held_len - r->held_pos, body = 0, room;
		uint64_t rest = r->shown_len + (r->end - r->pos);
		struct sl_buf buf;
		bool fin;

		room = sl_flow_reserve(r->flow, (uint32_t)sl_min(held + rest, (uint64_t)SL_APP_PIECE), &buf);
		if (!room)
			return;
		held = sl_min(held, room);
		memcpy(buf.data, r->held + r->held_pos, held);
		r->held_pos += held;
		if (held < room) {
			body = body_fill(r, buf.data + held, room - held);
			if (!body) {   /* the length is already promised: only a reset is honest */
				sl_buf_free(r->flow->edge, &buf);
				sl_app_abort(r, SL_ERROR);
				return;
			}
		}
		rest -= body;
		r->app->inst->bytes_out += body;
		fin = r->last && !rest && r->held_pos == r->held_len;
		sl_flow_commit(r->flow, &buf, held + body, fin ? SL_F_FIN : 0);
		if (!r->started)
			sl_trace_flow(r->flow, SL_TRACE_OUT, 0);
		r->started = true;
	}
	if (!r->last)
		return;
	if (!r->flow->tx_fin)
		sl_flow_fin(r->flow);
	sl_answer_done(r->app->inst, &r->answer);
}

/* Takes a free one, else one never used so far, so that memory is touched only as far as it was ever needed. */
static struct sl_app_request *request_new(struct sl_app *app, struct sl_flow *f)
{
	struct sl_app_request *r;

	if (!sl_list_empty(&app->free)) {
		r = sl_container_of(app->free.next, struct sl_app_request, node);
		sl_list_unlink(&r->node);
	} else if (app->nb_requests < app->conf.max_requests) {
		r = &app->requests[app->nb_requests++];
	} else {
		return NULL;
	}
	sl_list_append(&app->running, &r->node);
	r->app = app;
	r->flow = f;
	r->file = NULL;
	sl_answer_begin(app->inst, &r->answer);
	r->echo = r->started = false;
	r->last = true;
	r->body_in = r->pos = r->end = 0;
	r->shown_len = r->held_pos = r->held_len = 0;
	app->inst->active_flows++;
	app->inst->requests++;
	return r;
}

static int request_open(struct sl_flow *f, const void *msg, uint32_t len, bool fin)
{
	struct sl_instance *inst = sl_flow_instance(f);
	struct sl_app *app = inst->layer_state;
	struct sl_app_message m;
	struct sl_app_request *r;

	if (sl_app_message_read(&m, msg, len) || (fin && m.r.body_len && m.r.body_len != UINT64_MAX)) {
		inst->counters[SL_CNT_BAD_MESSAGE]++;
		return -SL_ERROR_PROTOCOL;
	}
	r = request_new(app, f);
	if (!r)
		return -SL_ERROR_REFUSED;
	r->body_len = fin ? 0 : m.r.body_len;
	f->user = r;
	sl_trace_flow(f, SL_TRACE_IN, 0);
	if (app->conf.echo && m.path.len == 5 && !memcmp(m.path.p, "/echo", 5))
		sl_app_echo(r, &m);
	else
		sl_app_static(r, &m);
	return 0;
}

static uint32_t request_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct sl_app_request *r = f->user;

	if (len > r->body_len - r->body_in) {
		message_bad(r);
		return len;
	}
	if (r->echo) {
		r->shown = p;
		r->shown_len = len;
		r->last = r->body_len - r->body_in == len;
		sl_app_push(r);   /* reads no file here, so it can not end the request */
		len -= r->shown_len;
		r->last = r->last && !r->shown_len;
		r->shown_len = 0;
	}
	r->body_in += len;
	r->app->inst->bytes_in += len;
	return len;
}

static void request_fin(struct sl_flow *f)
{
	struct sl_app_request *r = f->user;

	if (r->body_len != UINT64_MAX && r->body_in != r->body_len) {
		message_bad(r);
		return;
	}
	if (r->echo && !r->last) {
		r->last = true;
		sl_app_push(r);
	}
}

static void request_writable(struct sl_flow *f)
{
	struct sl_app_request *r = f->user;

	/* an echo's head alone waits for its first byte */
	if (!r->echo || r->last)
		sl_app_push(r);
	else
		sl_flow_resume(f);
}

static void request_over(struct sl_flow *f, enum sl_request_status status)
{
	(void)status;
	sl_trace_flow(f, SL_TRACE_DONE, 0);
	request_free(f->user);
}

static int root_take(struct sl_app *app)
{
	app->root = sl_instance_grant(app->inst, SL_GRANT_ROOT, 0);
	if (app->root < 0 && *app->conf.root)
		return sl_instance_fail(app->inst, EINVAL, "app: the folder %s was not granted", (const char *)app->conf.root);
	return 0;
}

static int app_init(struct sl_instance *inst)
{
	const struct sl_app_conf *conf;
	struct sl_app *app;
	uint32_t len;
	int err;

	conf = sl_instance_conf(inst, SL_CONF_APP, 0, &len);
	if (!conf || len != sizeof(*conf) || !conf->max_requests || conf->root[sizeof(conf->root) - 1] ||
	    conf->index[sizeof(conf->index) - 1])
		return sl_instance_fail(inst, EINVAL, "app: its configuration is missing or of the wrong form");
	app = calloc(1, sizeof(*app));
	if (app)
		app->requests = calloc(conf->max_requests, sizeof(*app->requests));
	if (!app || !app->requests) {
		free(app);
		return sl_instance_fail(inst, ENOMEM, "app: no memory for %u requests", conf->max_requests);
	}
	app->inst = inst;
	app->conf = *conf;
	sl_list_init(&app->free);
	sl_list_init(&app->running);
	err = root_take(app);
	if (err) {
		free(app->requests);
		free(app);
		return err;
	}
	inst->layer_state = app;
	return 0;
}

/* Requests are short: they just run out. */
static void app_drain(struct sl_instance *inst)
{
	(void)inst;
}

static void app_stop(struct sl_instance *inst)
{
	struct sl_app *app = inst->layer_state;

	if (!app)
		return;
	while (!sl_list_empty(&app->running))
		sl_app_abort(sl_container_of(app->running.next, struct sl_app_request, node), SL_ERROR_PEER_GONE);
	sl_app_files_close(app);
	if (app->root >= 0)
		close(app->root);
	free(app->requests);
	free(app);
	inst->layer_state = NULL;
}

static const struct sl_flow_ops app_front = {
	.open = request_open,
	.data = request_data,
	.fin = request_fin,
	.writable = request_writable,
	.over = request_over,
};

static const int app_syscalls[] = { SYS_openat2, SYS_pread64, SYS_fstat, SYS_newfstatat, SYS_close, -1 };

const struct sl_layer sl_layer_app = {
	.name = "app",
	.id = SL_LAYER_APP,
	.front = &app_front,
	.init = app_init,
	.drain = app_drain,
	.stop = app_stop,
	.syscalls = app_syscalls,
};
