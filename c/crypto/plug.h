/* SPDX-License-Identifier: Apache-2.0 */
/* Which device there is now. One thread, which may open files, has it come and go (sl_aead_device_plug, unplug);
 * another one, behind the walls, uses it (device.c). Each that comes has a number of its own, so that what was made of
 * a former one is known to be of no use. */
#ifndef SL_PLUG_H
#define SL_PLUG_H

#include "base/base.h"

/* One that stays until the end: made by EAL as it started. */
void sl_plug_fixed(void);

/* Until sl_plug_drop() it does not go. False: the one of that number is gone, or going. */
bool sl_plug_hold(uint32_t number);
void sl_plug_drop(void);

/* device.c: the first device that can do something for us. -ENODEV: there is none at all; -ENOTSUP: there are others,
 * and ret is the last of them. */
int sl_device_find(uint8_t *ret);

#endif
