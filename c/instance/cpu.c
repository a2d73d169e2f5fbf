/* SPDX-License-Identifier: Apache-2.0 */
/* What the CPUs can do for cryptography, as they say it themselves. */
#include "abi/control.h"
#include "instance/instance.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Leaf 7 tells of 512 bit registers, XCR0 whether the kernel saves them. */
static int avx512_usable(void)
{
	unsigned a, b, c, d, low, high;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 0;
	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (low & 0xe6) == 0xe6;
}

uint64_t sl_cpu_hardware(void)
{
	unsigned a, b, c, d;
	uint64_t bits = 0;

	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_AES))
		bits |= SL_HARDWARE_AES_NI;
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return bits;
	bits |= (c & bit_VAES ? SL_HARDWARE_VAES : 0) | (c & bit_GFNI ? SL_HARDWARE_GFNI : 0) | (b & bit_SHA ? SL_HARDWARE_SHA_NI : 0);
	if ((b & bit_AVX512F) && avx512_usable())
		bits |= SL_HARDWARE_AVX512;
	return bits;
}
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

uint64_t sl_cpu_hardware(void)
{
	const unsigned long all = HWCAP_AES | HWCAP_PMULL | HWCAP_SHA2;

	return (getauxval(AT_HWCAP) & all) == all ? SL_HARDWARE_ARM_CE : 0;
}
#else
uint64_t sl_cpu_hardware(void)
{
	return 0;
}
#endif
