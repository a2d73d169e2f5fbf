/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_WIPE_H
#define SL_WIPE_H

/* Overwrites what freed memory and the unused stack still hold: bytes of clients, of which nobody knew while they were
 * handled whether they were secret. Takes some milliseconds. For a process with one thread and the GNU C library. */
void sl_memory_wipe(void);

#endif
