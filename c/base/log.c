/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static void json_escape(char *out, size_t cap, const char *text)
{
	size_t n = 0;

	for (; *text && n + 3 < cap; text++) {
		if (*text == '"' || *text == '\\')
			out[n++] = '\\';
		out[n++] = (unsigned char)*text < 0x20 ? ' ' : *text;
	}
	out[n] = 0;
}

void sl_log(const struct sl_log *log, const char *level, const char *fmt, ...)
{
	char text[512], escaped[600], line[800];
	struct timespec t;
	va_list ap;
	int n;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_escape(escaped, sizeof(escaped), text);
	clock_gettime(CLOCK_REALTIME, &t);
	n = snprintf(line, sizeof(line), "{\"time\":%lld.%06ld,\"level\":\"%s\",%s,\"event\":\"%s\"}\n", (long long)t.tv_sec,
		     t.tv_nsec / 1000, level, log->who, escaped);
	if (n > 0 && write(STDERR_FILENO, line, (size_t)n) < 0)
		return;   /* nobody left to tell */
}
