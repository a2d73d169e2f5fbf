/* SPDX-License-Identifier: Apache-2.0 */
/* Structured log of a program: one JSON object a line on standard error. Never on the fast path; libraries do not
 * log. */
#ifndef SL_LOG_H
#define SL_LOG_H

struct sl_log {
	char who[96];   /* JSON members that stand in each line, such as "vm_id":3,"layer":"tls" */
};

/* level: "info", "warning", "error". The text must hold no control characters; quotes and backslashes are escaped. */
void sl_log(const struct sl_log *log, const char *level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
