/* SPDX-License-Identifier: GPL-2.0 */
/* Interrupt lines of PCI devices that are plugged in. */
#ifndef SL_LINES_H
#define SL_LINES_H

/* From now on they are set as soon as such a device appears, until lines_exit. 0 or -errno. */
int lines_init(void);
void lines_exit(void);

#endif
