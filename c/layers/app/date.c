/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP dates without the C library's time zones, which would read files. */
#include <stdio.h>

#include "layers/app/app.h"

static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";

/* Days from 1970-01-01 to year-month-day of the Gregorian calendar; month 1 ... 12. Counts years from March, so that
 * the leap day is last. */
static int64_t days_of(int64_t year, int64_t month, int64_t day)
{
	int64_t y = month > 2 ? year : year - 1, m = month > 2 ? month - 3 : month + 9;

	return y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719468;
}

void sl_app_date_format(int64_t t, char out[SL_APP_DATE_LEN])
{
	static const char weekdays[] = "ThuFriSatSunMonTueWed";
	int64_t days, second, year, month = 1;

	t = sl_min(t, (int64_t)253402300799);   /* 9999-12-31: four digits are all there is */
	t = sl_max(t, (int64_t)0);
	days = t / 86400;
	second = t % 86400;
	year = 1970 + days / 366;
	while (days_of(year + 1, 1, 1) <= days)
		year++;
	while (month < 12 && days_of(year, month + 1, 1) <= days)
		month++;
	snprintf(out, SL_APP_DATE_LEN, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", weekdays + days % 7 * 3,
		 (int)(days - days_of(year, month, 1) + 1), months + (month - 1) * 3, (int)year, (int)(second / 3600),
		 (int)(second / 60 % 60), (int)(second % 60));
}

static int month_of(const char *name)
{
	for (int i = 0; i < 12; i++) {
		if (!strncmp(name, months + i * 3, 3))
			return i + 1;
	}
	return 0;
}

struct parts {
	int year, day, h, m, s;
	char month[4];
};

/* Of the three forms only the first is still sent; all must be understood. */
static bool parts_read(const char *s, struct parts *d)
{
	int n = 0;

	if (sscanf(s, "%*3[A-Za-z], %2d %3[A-Za-z] %4d %2d:%2d:%2d GMT%n", &d->day, d->month, &d->year, &d->h, &d->m,
		   &d->s, &n) == 6 && n && !s[n])
		return true;
	n = 0;
	if (sscanf(s, "%*9[A-Za-z], %2d-%3[A-Za-z]-%2d %2d:%2d:%2d GMT%n", &d->day, d->month, &d->year, &d->h, &d->m,
		   &d->s, &n) == 6 && n && !s[n]) {
		d->year += d->year < 70 ? 2000 : 1900;
		return true;
	}
	n = 0;
	return sscanf(s, "%*3[A-Za-z] %3[A-Za-z] %2d %2d:%2d:%2d %4d%n", d->month, &d->day, &d->h, &d->m, &d->s,
		      &d->year, &n) == 6 && n && !s[n];
}

int sl_app_date_parse(struct sl_app_text text, int64_t *t)
{
	struct parts d;
	char s[48];
	int month;

	if (text.len >= sizeof(s) || memchr(text.p, 0, text.len))
		return -EINVAL;
	memcpy(s, text.p, text.len);
	s[text.len] = 0;
	if (!parts_read(s, &d))
		return -EINVAL;
	month = month_of(d.month);
	if (!month || d.year < 1970 || d.day < 1 || d.day > 31 || d.h < 0 || d.h > 23 || d.m < 0 || d.m > 59 ||
	    d.s < 0 || d.s > 60)
		return -EINVAL;
	*t = days_of(d.year, month, d.day) * 86400 + d.h * 3600 + d.m * 60 + d.s;
	return 0;
}
