/* SPDX-License-Identifier: Apache-2.0 */
/* The instance as a layer sees it. */
#include "fake_flow.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>

struct sl_instance *sl_flow_instance(const struct sl_flow *f)
{
	return &f->edge->fake->inst;
}

struct sl_edge *sl_instance_next_edge(struct sl_instance *inst, unsigned service)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	return k->no_next || service >= SL_SERVICE_MAX || !k->layer->back ? NULL : &k->back;
}

const void *sl_instance_conf(struct sl_instance *inst, enum sl_conf_type type, unsigned n, uint32_t *len)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	for (unsigned i = 0; i < k->nb_confs; i++) {
		if (k->confs[i].type != type || n--)
			continue;
		*len = k->confs[i].len;
		return k->confs[i].data;
	}
	return NULL;
}

/* As whoever stands outside does it: the folder of the app's configuration, opened. */
int sl_instance_grant(struct sl_instance *inst, enum sl_grant_kind kind, uint32_t number)
{
	uint32_t len;
	const struct sl_app_conf *conf = sl_instance_conf(inst, SL_CONF_APP, 0, &len);

	return kind == SL_GRANT_ROOT && !number && conf && *conf->root ? open((const char *)conf->root, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
}

void sl_instance_conf_wipe(struct sl_instance *inst, const void *data, uint32_t len)
{
	(void)inst, (void)data, (void)len;   /* the test's data may be constant */
}

int sl_instance_fail(struct sl_instance *inst, int err, const char *fmt, ...)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);
	va_list args;

	va_start(args, fmt);
	vsnprintf(k->fail, sizeof(k->fail), fmt, args);
	va_end(args);
	return -err;
}

int sl_watch_add(struct sl_instance *inst, struct sl_watch *w)
{
	(void)inst, (void)w;
	return 0;
}

int sl_watch_mod(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	(void)inst;
	w->events = events;
	return 0;
}

void sl_watch_del(struct sl_instance *inst, struct sl_watch *w)
{
	(void)inst, (void)w;
}

void sl_trace_flow(const struct sl_flow *f, enum sl_trace_point point, uint64_t parent)
{
	struct fake *k = f->edge->fake;

	if (f->traced && k->nb_traces < FAKE_TRACES)
		k->traces[k->nb_traces++] = (struct fake_trace){f->request_id, parent, point};
}

uint64_t sl_request_id(struct sl_instance *inst)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	return (uint64_t)inst->vm_id << 48 | ++k->next_request_id;
}
