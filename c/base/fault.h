/* SPDX-License-Identifier: Apache-2.0 */
/* Named places where a test may stop or kill the process: proof that whoever survives puts things in order from there. Nothing is left of
 * them in a build without SL_FAULT_POINTS. With it, a test defines sl_fault(); a program that does not is not changed. */
#ifndef SL_FAULT_H
#define SL_FAULT_H

#ifdef SL_FAULT_POINTS
void sl_fault(const char *where) __attribute__((weak));
#define SL_FAULT(where) do { if (sl_fault) sl_fault(where); } while (0)
#else
#define SL_FAULT(where) do { } while (0)
#endif

#endif
