/* SPDX-License-Identifier: Apache-2.0 */
#include "tls_line.h"

/* --- nonces --- */

enum { SEALS_MAX = 1 << 16 };

static struct seal {
	uint64_t key, content;   /* hashes of (secret, number) and of (type, plaintext); 0: none */
} seals[SEALS_MAX];

static uint64_t hash(uint64_t h, const void *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
	return h;
}

bool __real_sl_record_seal(struct sl_half *h, uint8_t type, const uint8_t *p, uint32_t len, uint8_t *out);
bool __wrap_sl_record_seal(struct sl_half *h, uint8_t type, const uint8_t *p, uint32_t len, uint8_t *out);

bool __wrap_sl_record_seal(struct sl_half *h, uint8_t type, const uint8_t *p, uint32_t len, uint8_t *out)
{
	uint64_t key = hash(hash(0xcbf29ce484222325u, h->secret, h->suite->secret_len), &h->seq, sizeof(h->seq));
	uint64_t content = hash(hash(0xcbf29ce484222325u, &type, 1), p, len);
	uint32_t i = (uint32_t)(key % SEALS_MAX);

	while (seals[i].key && seals[i].key != key)
		i = (i + 1) % SEALS_MAX;
	if (seals[i].key && seals[i].content != content)
		fail_msg("two plaintexts under one nonce: generation %u, number %lu", h->gen, (unsigned long)h->seq);
	seals[i] = (struct seal){key, content};
	return __real_sl_record_seal(h, type, p, len, out);
}

/* --- a connection, its two ends, and the instances that had it --- */

static uint8_t text_at(uint64_t i)
{
	return (uint8_t)(i * 31 + i / 251 + i / 65521);
}

static void text_make(uint8_t *p, uint64_t from, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++)
		p[i] = text_at(from + i);
}

static void text_check(struct end *e, const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != text_at(e->got + i))
			fail_msg("byte %lu is wrong", (unsigned long)(e->got + i));
	e->got += len;
}

unsigned roll(struct line *l, unsigned n)
{
	l->dice = l->dice * 1103515245 + 12345;
	return (l->dice >> 16) % n;
}

struct world *instance_start(void)
{
	struct world *w = malloc(sizeof(*w));

	world_conf(w);
	memset(&w->pool, 0x77, sizeof(w->pool));
	assert_int_equal(world_start(w, pairs, 1), 0);
	w->k.window = 1 << 30;
	w->k.manual = true;
	return w;
}

void instance_end(struct line *l)
{
	world_stop(l->w);
	free(l->w);
	l->w = NULL;
	l->front = l->back = NULL;
}

static void marks_take(struct end *e, struct fake_flow *ff)
{
	if (ff->out_len)
		e->marks.got = ff->got_mark;
	if (ff->ack_mark)
		e->marks.kept = ff->ack_mark;
	if (e->kept.bytes || ff->acked)
		assert_true(sl_pieces_drop(&e->kept, (uint32_t)ff->acked));
}

/* tcp takes what the instance has published. */
void front_collect(struct line *l)
{
	struct fake_flow *ff = l->front;
	uint8_t got[16384];
	size_t n;

	marks_take(&l->tcp, ff);
	if (ff->state_len)
		memcpy(l->state, ff->state, l->state_len = ff->state_len);
	BIO_write(l->c.in, ff->out, (int)ff->out_len);
	fake_collected(ff);
	while (SSL_read_ex(l->c.ssl, got, sizeof(got), &n) == 1)
		text_check(&l->client, got, n);
	assert_int_equal(SSL_get_error(l->c.ssl, 0), SSL_ERROR_WANT_READ);
	ERR_clear_error();
}

void back_collect(struct line *l)
{
	if (!l->back)
		return;
	marks_take(&l->http, l->back);
	text_check(&l->http, l->back->out, l->back->out_len);
	fake_collected(l->back);
}

void collect(struct line *l)
{
	front_collect(l);
	back_collect(l);
}

/* tcp passes on what the client has said, in pieces of its own. */
static void client_forward(struct line *l)
{
	uint8_t piece[5000];
	int n;

	while ((n = BIO_read(l->c.out, piece, 1 + (int)roll(l, sizeof(piece)))) > 0) {
		assert_true(sl_pieces_add(&l->tcp.kept, piece, (uint32_t)n));
		fake_send(l->front, piece, (size_t)n, 0);
	}
}

void client_say(struct line *l)
{
	uint8_t text[20000];
	uint32_t len = 1 + roll(l, roll(l, 4) ? 600 : sizeof(text));
	size_t n;

	text_make(text, l->client.sent, len);
	assert_int_equal(SSL_write_ex(l->c.ssl, text, len, &n), 1);
	l->client.sent += len;
	client_forward(l);
}

void http_say(struct line *l)
{
	uint8_t text[SL_RECORD_CONTENT];
	uint32_t len = 1 + roll(l, roll(l, 4) ? 600 : sizeof(text));

	text_make(text, l->http.sent, len);
	l->http.sent += len;
	assert_true(sl_pieces_add(&l->http.kept, text, len));
	fake_send(l->back, text, len, 0);
}

void line_open(struct line *l, unsigned dice, int suite)
{
	static const char *const suites[] = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"};
	struct sl_flow_open open;

	memset(l, 0, sizeof(*l));
	l->dice = dice;
	l->http.kept.cut = true;
	l->w = instance_start();
	client_open(&l->c, l->w, TLS1_3_VERSION);
	SSL_set_ciphersuites(l->c.ssl, suites[suite]);
	l->front = l->c.front;
	l->request_id = l->front->flow.request_id;
	SSL_do_handshake(l->c.ssl);
	for (int i = 0; i < 4; i++) {
		ERR_clear_error();
		client_forward(l);
		front_collect(l);
		SSL_do_handshake(l->c.ssl);
	}
	assert_true(SSL_is_init_finished(l->c.ssl));
	l->back = fake_last_opened(&l->w->k);
	assert_non_null(l->back);
	assert_int_equal(l->back->msg_len, sizeof(open));
	memcpy(&open, l->back->msg, sizeof(open));
	memcpy(l->token, open.token, sizeof(l->token));
	assert_int_equal(l->state_len, SL_SEALED_LEN);
}

void line_close(struct line *l)
{
	instance_end(l);
	sl_pieces_free(&l->tcp.kept);
	sl_pieces_free(&l->http.kept);
	client_close(&l->c);
}

void crash(struct line *l)
{
	if (roll(l, 2))
		front_collect(l);
	if (roll(l, 2))
		back_collect(l);
	instance_end(l);
}

void drain(struct line *l)
{
	l->w->k.inst.draining = true;
	l->w->k.layer->drain(&l->w->k.inst);
	assert_true(l->front->flow.drained);
	fake_hand_over(l->front);
	assert_true(l->front->out_moved && l->back->out_moved);
	collect(l);
	assert_int_equal(l->w->k.inst.active_flows, 0);
	instance_end(l);
}

struct fake_flow *offered(struct line *l, uint64_t request_id)
{
	uint8_t msg[sizeof(struct sl_flow_marks) + SL_STATE_LEN];

	memcpy(msg, &l->tcp.marks, sizeof(l->tcp.marks));
	memcpy(msg + sizeof(l->tcp.marks), l->state, l->state_len);
	return fake_take_over(&l->w->k, request_id, msg, (uint32_t)sizeof(l->tcp.marks) + l->state_len);
}

static void tcp_replay(struct line *l)
{
	uint32_t at = 0, len, done = 0;
	const uint8_t *p = sl_pieces_next(&l->tcp.kept, &at, &len);

	while (p && done < len) {
		uint32_t n = sl_min(len - done, 1 + roll(l, 9000));

		fake_send(l->front, p + done, n, 0);
		done += n;
	}
}

void http_replay(struct line *l)
{
	uint32_t at = 0, len;
	const uint8_t *p;

	l->http.marks.kept_len = l->http.kept.bytes;
	fake_resumed(l->back, &l->http.marks);
	while ((p = sl_pieces_next(&l->http.kept, &at, &len)))
		fake_send(l->back, p, len, 0);
}

void take_over(struct line *l)
{
	bool tcp_first;

	l->w = instance_start();
	l->front = offered(l, l->request_id);
	assert_non_null(l->front);
	l->back = fake_last_opened(&l->w->k);
	assert_non_null(l->back);
	assert_int_equal(l->back->flow.request_id, l->request_id);
	assert_true(l->back->msg_len == sizeof(l->token) && !memcmp(l->back->msg, l->token, sizeof(l->token)));
	tcp_first = roll(l, 2);
	if (tcp_first)
		tcp_replay(l);
	http_replay(l);
	if (!tcp_first)
		tcp_replay(l);
	assert_false(l->front->ended || l->back->ended);
	assert_int_equal(l->w->k.inst.counters[SL_CNT_MOVED], 1);
}

void settle(struct line *l)
{
	for (int i = 0; i < 8; i++) {
		collect(l);
		fake_tick(&l->w->k, SL_WHEEL_MS);
	}
	client_forward(l);
	collect(l);
	assert_true(l->client.got == l->http.sent && l->http.got == l->client.sent);
}
