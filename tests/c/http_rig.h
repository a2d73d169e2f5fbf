/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the layer http share: one client connection, one fake next layer that is the application. */
#ifndef SL_HTTP_RIG_H
#define SL_HTTP_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "fake_flow.h"
#include "layers/http/http.h"

#define TEXT(s) (s), (sizeof(s) - 1)   /* bytes that may hold NUL */
#define GET "GET / HTTP/1.1\r\nHost: a\r\n"
#define POST "POST /up HTTP/1.1\r\nHost: a\r\n"
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"

struct rig {
	struct fake k;
	struct sl_http_conf conf;
	struct sl_flow_open open;
	struct fake_flow *c;   /* the client's connection */
};

struct sl_http_conf conf_default(void);
void rig_start(struct rig *r, struct sl_http_conf conf);   /* with one connection, r->c; end with fake_stop(&r->k) */
void rig_default(struct rig *r);
struct fake_flow *rig_connect(struct rig *r);              /* one more connection, NULL: refused */
void rig_pump(struct fake_flow *ff, uint32_t step);        /* grants step bytes at a time while ff is blocked */

/* the client */
void say(struct rig *r, const char *text);
int status_of(const struct fake_flow *c);                  /* of the first answer, 0: none */
bool has(const struct fake_flow *c, const char *text);
const char *body_of(const struct fake_flow *c);            /* all behind the first head */

/* the application */
struct fake_flow *app(struct rig *r);                      /* the last request's flow */
const struct sl_http_request *request(struct rig *r);
bool text_at(const void *msg, unsigned off, unsigned len, const char *text);
bool app_has(struct rig *r, const char *name, const char *value);   /* among the request's fields; value NULL: any */
/* Writes a struct sl_http_response with fields "name: value\n..." and len bytes of body behind it. Returns its
 * length. */
uint32_t message(uint8_t *out, unsigned status, uint64_t body_len, const char *fields, const void *body, uint32_t len);
void answer(struct rig *r, unsigned status, const char *fields, const char *body);   /* whole, with FIN */

/* All tests of a file; with an argument only the one of that name. */
#define RUN_TESTS(tests) do { \
	if (argc > 1) \
		cmocka_set_test_filter(argv[1]); \
	return cmocka_run_group_tests(tests, NULL, NULL); \
} while (0)

#endif
