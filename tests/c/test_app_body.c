/* SPDX-License-Identifier: Apache-2.0 */
/* Bodies of the layer app: files and /echo, with little room, and files that change. */
#include "app_rig.h"

#include <fcntl.h>
#include <unistd.h>

static void test_big_file_with_little_room(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff, *range;

	ff = request_send(w, GET, "/big.bin", NULL);
	assert_int_equal(ff->out_len, SL_FLOW_WINDOW);   /* no more than the window */
	range = request_send(w, GET, "/big.bin", "range: bytes=1000-298999\n");
	assert_int_equal(w->k.inst.active_flows, 2);
	for (unsigned i = 1; !ff->out_fin || !range->out_fin; i++) {
		assert_true(i < 100000);
		fake_credit(i % 2 ? ff : range, i % 977 + 1);
		if (i % 50 == 0)
			fake_slots(&w->k, i % 100 ? 0 : UINT32_MAX);   /* the arena runs dry in between */
	}
	fake_slots(&w->k, UINT32_MAX);
	big_check(ff, 0, BIG_LEN);
	big_check(range, 1000, 299000);
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.bytes_out, BIG_LEN + 298000);
}

static void test_no_slot_at_first(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff;
	struct answer a;

	fake_slots(&w->k, 0);
	ff = request_send(w, GET, "/hello.txt", NULL);
	assert_int_equal(ff->out_len, 0);
	fake_slots(&w->k, UINT32_MAX);
	assert_true(ff->out_fin);
	answer_read(ff, &a);
	assert_int_equal(a.r.status, 200);
	assert_int_equal(ff->nb_commits, 1);
}

static void test_tiny_slots(void **state)
{
	struct world *w = *state;

	w->k.slot_len = 7;
	body_expect(w, "/hello.txt", "0123456789");
	body_expect(w, "/missing", "404 Not Found\n");
	big_check(request_send(w, GET, "/big.bin", "range: bytes=5-99\n"), 5, 100);
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_file_shrinks(void **state)
{
	struct world *w = *state;
	struct fake_flow *ff = request_send(w, GET, "/big.bin", NULL);

	file_write(w, "root/big.bin", "short", 5);
	fake_credit(ff, SL_FLOW_WINDOW);
	assert_true(ff->out_reset && !ff->out_fin);
	assert_int_equal(w->k.inst.active_flows, 0);
}

static void test_replaced_file_is_seen(void **state)
{
	struct world *w = *state;
	char from[128], to[128];

	body_expect(w, "/hello.txt", "0123456789");
	file_write(w, "root/new", "NEW", 3);
	snprintf(from, sizeof(from), "%s/root/new", w->dir);
	snprintf(to, sizeof(to), "%s/root/hello.txt", w->dir);
	assert_int_equal(rename(from, to), 0);
	body_expect(w, "/hello.txt", "0123456789");   /* at most one second old */
	fake_tick(&w->k, 1100);
	body_expect(w, "/hello.txt", "NEW");
	unlink(to);
	fake_tick(&w->k, 1100);
	body_expect(w, "/hello.txt", "404 Not Found\n");
}

static unsigned nb_open_files(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void test_open_files_are_bounded(void **state)
{
	struct world *w = *state;
	unsigned before = nb_open_files();
	char name[32];

	for (int i = 0; i < 200; i++) {
		snprintf(name, sizeof(name), "root/f%d", i);
		file_write(w, name, name, strlen(name));
	}
	for (int i = 0; i < 600; i++) {
		snprintf(name, sizeof(name), "root/f%d", i * 7 % 200);
		body_expect(w, name + 4, name);
		w->k.inst.now_ns += 1000000;
	}
	assert_int_equal(nb_open_files(), before + 64);
}

/* --- echo --- */

/* One echo, its answer checked while it comes */
struct echo {
	struct fake_flow *ff;
	size_t sent, got;
	uint64_t announced;      /* by the answer */
	char type[64];
};

static void echo_take(struct echo *e)
{
	const uint8_t *p = e->ff->out;
	size_t n = e->ff->out_len;

	if (!e->type[0] && n > 200) {   /* the head is whole */
		struct answer a;

		answer_read(e->ff, &a);
		assert_int_equal(a.r.status, 200);
		e->announced = a.r.body_len;
		snprintf(e->type, sizeof(e->type), "%s", field_of(&a, "content-type"));
		p = a.body;
		n = a.body_len;
	}
	if (!e->type[0])
		return;
	for (size_t i = 0; i < n; i++) {
		if (p[i] != big_byte(e->got + i))
			fail_msg("byte %zu is wrong", e->got + i);
	}
	e->got += n;
	fake_out_drop(e->ff);
}

static void echo_send(struct echo *e, size_t len, uint32_t flags)
{
	uint8_t piece[16384];

	for (size_t i = 0; i < len; i++)
		piece[i] = big_byte(e->sent + i);
	e->sent += len;
	fake_send(e->ff, piece, len, flags);
}

static void echo_open(struct world *w, struct echo *e, uint8_t method, const char *fields, uint64_t body_len)
{
	struct message m;

	memset(e, 0, sizeof(*e));
	w->k.window = 300;
	message_make(&m, method, "/echo", fields, body_len);
	e->ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	assert_non_null(e->ff);
	assert_int_equal(e->ff->out_len, 0);   /* not before the body */
}

enum { ECHO_LEN = 5 * 1024 * 1024 };

static void test_echo_5_mib_known_length(void **state)
{
	struct world *w = *state;
	struct echo e;

	echo_open(w, &e, SL_HTTP_POST, "content-type: x/y\n", ECHO_LEN);
	while (!e.ff->out_fin) {
		size_t n = sl_min((size_t)16384, ECHO_LEN - e.sent);

		if (n && !fake_backlog(e.ff))
			echo_send(&e, n, e.sent + n == ECHO_LEN ? SL_F_FIN : 0);
		fake_credit(e.ff, 1777);
		assert_false(e.ff->out_reset);
		echo_take(&e);
	}
	assert_int_equal(e.got, ECHO_LEN);
	assert_int_equal(e.announced, ECHO_LEN);
	assert_string_equal(e.type, "x/y");
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_int_equal(w->k.inst.bytes_in, ECHO_LEN);
	assert_int_equal(w->k.inst.bytes_out, ECHO_LEN);
}

static void test_echo_5_mib_unknown_length(void **state)
{
	struct world *w = *state;
	struct echo e;

	echo_open(w, &e, SL_HTTP_PUT, "content-type: evil\x01\n", UINT64_MAX);
	while (e.sent < ECHO_LEN) {
		echo_send(&e, 4096, 0);
		while (fake_backlog(e.ff)) {
			fake_credit(e.ff, 211);
			echo_take(&e);
		}
	}
	assert_int_equal(e.got, ECHO_LEN);
	assert_false(e.ff->out_fin);
	fake_send(e.ff, NULL, 0, SL_F_FIN);
	assert_true(e.ff->out_fin && !e.ff->out_reset);
	assert_true(e.announced == UINT64_MAX);
	assert_string_equal(e.type, "application/octet-stream");
}

static void test_echo_empty(void **state)
{
	static const struct row rows[] = {
		{SL_HTTP_POST, "/echo", NULL, 200, "content-type: application/octet-stream", ""},
		{SL_HTTP_PUT, "/echo", "content-type: a/b\n", 200, "content-type: a/b", ""},
		{SL_HTTP_DELETE, "/echo", NULL, 405, "allow: POST, PUT", NULL},
	};
	struct world *w = *state;
	struct message m;
	struct fake_flow *ff;

	rows_check(w, rows, sl_nb(rows));
	/* the end comes later, without a byte */
	message_make(&m, SL_HTTP_POST, "/echo", NULL, UINT64_MAX);
	ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	assert_int_equal(ff->out_len, 0);
	fake_slots(&w->k, 0);
	fake_send(ff, NULL, 0, SL_F_FIN);
	assert_false(ff->out_fin);
	fake_slots(&w->k, UINT32_MAX);
	assert_true(ff->out_fin && ff->ended);
}

static void test_unwanted_body_is_thrown_away(void **state)
{
	struct world *w = *state;
	struct message m;
	struct fake_flow *ff;
	uint8_t piece[1000] = {0};
	struct answer a;

	message_make(&m, SL_HTTP_POST, "/hello.txt", NULL, 100000);
	ff = fake_open(&w->k, m.data, m.len, 0, NULL);
	answer_read(ff, &a);
	assert_int_equal(a.r.status, 405);
	assert_true(ff->out_fin);
	for (int i = 0; i < 100; i++) {
		assert_int_equal(w->k.inst.active_flows, 1);
		fake_send(ff, piece, sizeof(piece), i == 99 ? SL_F_FIN : 0);
		assert_int_equal(fake_backlog(ff), 0);
	}
	assert_int_equal(w->k.inst.active_flows, 0);
	assert_false(ff->out_reset);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_big_file_with_little_room), T(test_no_slot_at_first), T(test_tiny_slots), T(test_file_shrinks),
		T(test_replaced_file_is_seen), T(test_open_files_are_bounded), T(test_echo_5_mib_known_length),
		T(test_echo_5_mib_unknown_length), T(test_echo_empty), T(test_unwanted_body_is_thrown_away),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
