/* SPDX-License-Identifier: Apache-2.0 */
/* The classifier in the kernel (BPF_PROG_TEST_RUN) and in user space (c/classifier), packet by packet on the same maps:
 * action, counter and metadata must be the same. First each frame of the file as it is, twice, then mutated ones, in a
 * world of instances, tables and services that changes too.
 *
 * usage: equal PINS PROG_FD FRAMES NB_MUTATED SEED    prints what it compared; exit status 1 at the first difference
 *        equal PINS PROG_FD FRAMES NB_RUNS time N     prints ns per run of frame number N in user space */
#include <bpf/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "classifier/classifier.h"
#include "ebpf/loader.h"

enum {
	FRAMES_MAX = 256,
	FRAME_MAX = 2048,
	NB_VERDICT = sizeof(struct sl_counters) / sizeof(uint64_t),
	NB_VM = 3,
	WORLD_PERIOD = 4096,   /* packets until all is forgotten, before a map must forget by itself */
	VMS_PERIOD = 128,      /* packets until instances come and go */
	REDIRECT = 4,          /* XDP_REDIRECT */
};

struct frame {
	uint8_t data[FRAME_MAX];
	uint32_t len;
};

struct seen {
	uint32_t action, verdict;
	struct sl_meta meta;
};

struct rig {
	struct sl_classifier *user;
	const char *pins;
	int prog, nb_cpu;
	int config, services, vms, maglev, flows, frags, counters;
	uint64_t chance;
	uint64_t verdicts[NB_VERDICT];
	uint64_t before[NB_VERDICT];
	uint32_t nb_frame;
	struct frame frame[FRAMES_MAX];
};

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(2);
}

static uint32_t chance(struct rig *r, uint32_t below)
{
	r->chance ^= r->chance << 13;
	r->chance ^= r->chance >> 7;
	r->chance ^= r->chance << 17;
	return (uint32_t)(r->chance >> 32) % below;
}

/* ---- both sides -------------------------------------------------------------------------------------------------- */

static void kernel_counters(const struct rig *r, uint64_t sum[NB_VERDICT])
{
	struct sl_counters per_cpu[256];
	uint32_t zero = 0;
	int cpu, i;

	if (bpf_map_lookup_elem(r->counters, &zero, per_cpu))
		fail("read counters");
	memset(sum, 0, NB_VERDICT * sizeof(*sum));
	for (cpu = 0; cpu < r->nb_cpu; cpu++)
		for (i = 0; i < NB_VERDICT; i++)
			sum[i] += ((const uint64_t *)&per_cpu[cpu])[i];
}

/* The one counter that moved, by one. */
static uint32_t moved(const uint64_t *before, const uint64_t *after)
{
	uint32_t i, found = NB_VERDICT;

	for (i = 0; i < NB_VERDICT; i++) {
		if (after[i] == before[i])
			continue;
		if (found != NB_VERDICT || after[i] != before[i] + 1)
			return NB_VERDICT + 1;
		found = i;
	}
	return found;
}

static struct seen kernel_run(struct rig *r, const struct frame *f)
{
	uint8_t out[FRAME_MAX + 256];
	struct sl_bpf_run run = { .data = f->data, .data_len = f->len, .out = out, .out_cap = sizeof(out) };
	uint64_t after[NB_VERDICT];
	struct seen s = { 0 };
	int err = sl_bpf_prog_run(r->prog, &run);

	if (err) {
		errno = -err;
		fail("BPF_PROG_TEST_RUN");
	}
	kernel_counters(r, after);
	s.action = run.action;
	s.verdict = moved(r->before, after);
	memcpy(r->before, after, sizeof(after));
	if (run.action == REDIRECT)
		memcpy(&s.meta, out, sizeof(s.meta));
	return s;
}

/* The frame ends where its memory does, so that the sanitizer sees a read behind it. off: its address modulo 4. */
static struct seen user_run(struct rig *r, const struct frame *f, uint32_t off)
{
	uint8_t *memory = malloc(off + f->len);
	struct sl_classifier_frame in = { memory + off, f->len, f->len, 0 };
	uint64_t before[NB_VERDICT];
	struct seen s;

	memcpy(memory + off, f->data, f->len);
	memcpy(before, sl_classifier_counters(r->user), sizeof(before));
	s.action = sl_classifier_run(r->user, &in, &s.meta);
	s.verdict = moved(before, (const uint64_t *)sl_classifier_counters(r->user));
	free(memory);
	return s;
}

static void compare(struct rig *r, const struct frame *f)
{
	struct seen k = kernel_run(r, f), u = user_run(r, f, chance(r, 2) * 2);
	uint32_t i;

	if (k.action == u.action && k.verdict == u.verdict && k.verdict < NB_VERDICT &&
	    !memcmp(&k.meta, &u.meta, sizeof(k.meta))) {
		r->verdicts[k.verdict]++;
		return;
	}
	fprintf(stderr, "kernel: action %u counter %u vm %u hash %08x; user: action %u counter %u vm %u hash %08x\n",
		k.action, k.verdict, k.meta.vm_id, k.meta.hash, u.action, u.verdict, u.meta.vm_id, u.meta.hash);
	for (i = 0; i < f->len; i++)
		fprintf(stderr, "%02x", f->data[i]);
	fprintf(stderr, "\n");
	exit(1);
}

/* ---- the world --------------------------------------------------------------------------------------------------- */

static void map_empty(int fd)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	static uint8_t keys[WORLD_PERIOD * 64], values[WORLD_PERIOD * 64];
	uint64_t token = 0, *from = NULL;
	uint32_t count;
	int err;

	do {
		count = WORLD_PERIOD;
		err = bpf_map_lookup_and_delete_batch(fd, from, &token, keys, values, &count, &opts);
		from = &token;
	} while (!err);
}

static void forget(struct rig *r)
{
	map_empty(r->flows);
	map_empty(r->frags);
	sl_classifier_forget(r->user);
}

static void generation_next(struct rig *r)
{
	struct sl_config config;
	uint32_t zero = 0;

	if (bpf_map_lookup_elem(r->config, &zero, &config))
		fail("read config");
	config.generation++;
	if (bpf_map_update_elem(r->config, &zero, &config, BPF_ANY))
		fail("write config");
	sl_classifier_turn(r->user, sl_now_ns());
}

static void vms_change(struct rig *r)
{
	uint32_t vm_id;
	struct sl_vm vm;

	for (vm_id = 1; vm_id <= NB_VM; vm_id++) {
		if (bpf_map_lookup_elem(r->vms, &vm_id, &vm))
			fail("read vms");
		vm.state = chance(r, 4) ? SL_VM_ACTIVE : (uint8_t)chance(r, SL_VM_FAILED + 1);
		vm.gen += !chance(r, 4);
		if (bpf_map_update_elem(r->vms, &vm_id, &vm, BPF_ANY))
			fail("write vms");
	}
}

static void table_change(struct rig *r)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = BPF_F_MMAPABLE);
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "maglev_table", 4, sizeof(struct sl_maglev), 1, &opts);
	uint32_t service = chance(r, 2), i, most = chance(r, 4) ? NB_VM : NB_VM + 1;
	struct sl_maglev *table = fd < 0 ? MAP_FAILED :
		mmap(NULL, sizeof(*table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (table == MAP_FAILED)
		fail("make a table");
	for (i = 0; i < SL_MAGLEV_SIZE; i++)
		table->vm[i] = (uint16_t)chance(r, most + 1);
	munmap(table, sizeof(*table));
	if (bpf_map_update_elem(r->maglev, &service, &fd, BPF_ANY))
		fail("swap a table");
	if (sl_classifier_table_set(r->user, service, fd))
		fail("map a table");
	close(fd);
}

/* One service or virtual IP goes, those that went before come back. */
static void services_change(struct rig *r)
{
	static struct sl_service_key key;
	static struct sl_service service;
	static bool gone;
	struct sl_service_key next;
	uint32_t skip = chance(r, 4);

	if (gone)
		bpf_map_update_elem(r->services, &key, &service, BPF_ANY);
	gone = !bpf_map_get_next_key(r->services, NULL, &key);
	while (gone && skip-- && !bpf_map_get_next_key(r->services, &key, &next))
		key = next;
	gone = gone && !bpf_map_lookup_elem(r->services, &key, &service) && !bpf_map_delete_elem(r->services, &key);
	generation_next(r);
}

static void world_change(struct rig *r)
{
	forget(r);
	vms_change(r);
	if (!chance(r, 4))
		table_change(r);
	if (!chance(r, 4))
		services_change(r);
}

/* ---- packets ----------------------------------------------------------------------------------------------------- */

static void bytes_insert(struct frame *f, uint32_t at, uint32_t len, struct rig *r)
{
	uint32_t i;

	if (f->len + len > FRAME_MAX)
		return;
	memmove(f->data + at + len, f->data + at, f->len - at);
	for (i = 0; i < len; i++)
		f->data[at + i] = (uint8_t)chance(r, 256);
	f->len += len;
}

static void bytes_remove(struct frame *f, uint32_t at, uint32_t len)
{
	len = sl_min(len, f->len - at);
	memmove(f->data + at, f->data + at + len, f->len - at - len);
	f->len -= len;
}

/* One small change, mostly in the headers: offsets from 12 on. */
static void mutate(struct rig *r, struct frame *f)
{
	static const uint8_t words[][2] = {
		{ 0, 0 }, { 255, 255 }, { 8, 0 }, { 0x81, 0 }, { 0x88, 0xa8 }, { 0x86, 0xdd }, { 0, 20 }, { 0, 53 },
	};
	static const uint8_t bytes[] = { 0, 1, 6, 17, 43, 44, 58, 60, 0x45, 0x60, 0x7f, 0xff };
	static const uint32_t steps[] = { 1, 4, 8 };
	uint32_t at = 12 + chance(r, sl_max(sl_min(f->len, 100u), 13u) - 12);

	if (at + 2 > f->len)
		at = sl_max(f->len, 14u) - 2;
	switch (chance(r, 7)) {
	case 0: f->data[at] ^= (uint8_t)(1 << chance(r, 8)); break;
	case 1: f->data[at] = bytes[chance(r, sizeof(bytes))]; break;
	case 2: memcpy(f->data + at, words[chance(r, sl_nb(words))], 2); break;
	case 3: f->len = 12 + chance(r, f->len - 12 + 1); break;
	case 4: bytes_insert(f, at, steps[chance(r, 3)], r); break;
	case 5: bytes_remove(f, at, steps[chance(r, 3)]); break;
	case 6: bytes_insert(f, f->len, chance(r, 64), r); break;
	}
	while (f->len < 14)
		f->data[f->len++] = 0;
}

static void frames_read(struct rig *r, const char *path)
{
	FILE *file = fopen(path, "rb");
	uint32_t len;

	if (!file)
		fail(path);
	while (r->nb_frame < FRAMES_MAX && fread(&len, sizeof(len), 1, file) == 1) {
		struct frame *f = &r->frame[r->nb_frame++];

		if (len > FRAME_MAX || fread(f->data, 1, len, file) != len)
			fail("frame too long, or the file ends in it");
		f->len = len;
	}
	fclose(file);
}

static void frames_compare(struct rig *r, uint64_t nb)
{
	struct frame f;
	uint64_t n;
	uint32_t i, times;

	for (i = 0; i < 2 * r->nb_frame; i++)
		compare(r, &r->frame[i % r->nb_frame]);
	for (n = 0; n < nb; n++) {
		if (n % WORLD_PERIOD == 0)
			world_change(r);
		else if (n % VMS_PERIOD == 0)
			vms_change(r);
		f = r->frame[chance(r, r->nb_frame)];
		for (times = sl_max(1, (int)chance(r, 6) - 1); times; times--)
			mutate(r, &f);
		compare(r, &f);
	}
}

/* A flow whose service goes is forgotten: it must not live on in a table that the manager can not reach. */
static void sweep_check(struct rig *r)
{
	struct sl_service_key key;
	uint32_t i, known = 0;

	for (i = 0; i < r->nb_frame; i++)
		user_run(r, &r->frame[i], 0);
	while (!bpf_map_get_next_key(r->services, NULL, &key))
		bpf_map_delete_elem(r->services, &key);
	generation_next(r);
	for (i = 0; i < r->nb_frame; i++) {
		struct seen s = user_run(r, &r->frame[i], 0);

		known += s.verdict == offsetof(struct sl_counters, flow_known) / sizeof(uint64_t);
	}
	if (known) {
		fprintf(stderr, "%u flows of services that are gone\n", known);
		exit(1);
	}
}

static void time_print(struct rig *r, uint64_t nb, uint32_t index)
{
	struct frame *f = &r->frame[index % r->nb_frame];
	struct sl_classifier_frame in = { f->data, f->len, f->len, 0 };
	struct sl_meta meta;
	uint64_t n, start;

	sl_classifier_run(r->user, &in, &meta);
	start = sl_now_ns();
	for (n = 0; n < nb; n++)
		sl_classifier_run(r->user, &in, &meta);
	printf("%.2f\n", (double)(sl_now_ns() - start) / (double)nb);
}

static int pin(const struct rig *r, const char *name)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", r->pins, name);
	fd = sl_bpf_pin_get(path);
	if (fd < 0)
		fail(path);
	return fd;
}

static void rig_open(struct rig *r, const char *pins, const char *prog)
{
	int err;

	r->pins = pins;
	r->prog = atoi(prog);
	r->nb_cpu = sl_bpf_nb_cpus();
	r->config = pin(r, "config");
	r->services = pin(r, "services");
	r->vms = pin(r, "vms");
	r->maglev = pin(r, "maglev");
	r->flows = pin(r, "flows");
	r->frags = pin(r, "frags");
	r->counters = pin(r, "counters");
	err = sl_classifier_open(pins, &r->user);
	if (err) {
		errno = -err;
		fail("open the classifier");
	}
	sl_classifier_queues_set(r->user, 1);
	sl_classifier_turn(r->user, sl_now_ns());
	kernel_counters(r, r->before);
}

int main(int argc, char **argv)
{
	static struct rig r;
	uint32_t i;

	if (argc < 6)
		return 2;
	rig_open(&r, argv[1], argv[2]);
	frames_read(&r, argv[3]);
	if (argc == 7) {
		time_print(&r, strtoull(argv[4], NULL, 10), (uint32_t)atoi(argv[6]));
	} else {
		r.chance = strtoull(argv[5], NULL, 10) * 0x9e3779b97f4a7c15ull | 1;
		frames_compare(&r, strtoull(argv[4], NULL, 10));
		sweep_check(&r);
		for (i = 0; i < NB_VERDICT; i++)
			printf("%llu ", (unsigned long long)r.verdicts[i]);
		printf("\n");
	}
	sl_classifier_close(r.user);
	return 0;
}
