/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest of a guest: a multiboot program without an operating system, for QEMU's machine `pc`. It says on COM1 which PCI
 * functions it sees, tests QEMU's `edu` device by real DMA, and takes part in ACPI hot-plug: what comes is given an
 * address and tested, what is asked for is let go - unless the letter 'k' came in on COM1.
 */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

enum {
	EDU_ID = 0x11e81234,
	HOTPLUG_UP = 0xae00, HOTPLUG_DOWN = 0xae04, HOTPLUG_EJECT = 0xae08, HOTPLUG_BUS = 0xae10, /* docs/specs/acpi_pci_hotplug */
	BAR = 0xe0000000, /* free on `pc` */
	COM1 = 0x3f8,
};

__attribute__((used)) static const u32 multiboot[3] = { 0x1BADB002, 0, -0x1BADB002 }; /* in the first 8 KiB of the file */

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline void outl(u16 port, u32 v) { __asm__ volatile("outl %0,%1" ::"a"(v), "Nd"(port)); }
static inline u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }

static u8 buffer[4096] __attribute__((aligned(4096)));
__attribute__((used)) static u8 stack[8192];

static void say(const char *s)
{
	for (; *s; s++) {
		while (!(inb(COM1 + 5) & 0x20))
			;
		outb(COM1, *s);
	}
}

static void say_hex(u32 v, int digits)
{
	char text[2] = { 0, 0 };

	while (digits--) {
		text[0] = "0123456789abcdef"[v >> (4 * digits) & 15];
		say(text);
	}
}

static u32 config(u32 slot, u32 off)
{
	outl(0xcf8, 0x80000000u | slot << 11 | off);
	return inl(0xcfc);
}

static void config_set(u32 slot, u32 off, u32 v)
{
	outl(0xcf8, 0x80000000u | slot << 11 | off);
	outl(0xcfc, v);
}

/* One transfer of 1 KiB; edu moves the data 100 ms later. */
static void dma(volatile u32 *regs, u32 from, u32 to, u32 command)
{
	regs[0] = from, regs[1] = 0, regs[2] = to, regs[3] = 0, regs[4] = 1024, regs[5] = 0, regs[6] = command, regs[7] = 0;
	while (regs[6] & 1)
		;
}

static void edu_test(u32 slot)
{
	config_set(slot, 4, config(slot, 4) | 6); /* memory, bus master */
	volatile u32 *bar = (volatile u32 *)(config(slot, 0x10) & ~15u);
	int bad = 0;

	bar[1] = 0x12345678;
	bad |= bar[1] != ~0x12345678u;
	for (int i = 0; i < 1024; i++)
		buffer[i] = i * 5 + 1, buffer[2048 + i] = 0;
	dma(bar + 0x80 / 4, (u32)buffer, 0x40000, 1);
	dma(bar + 0x80 / 4, 0x40000, (u32)buffer + 2048, 3);
	for (int i = 0; i < 1024; i++)
		bad |= buffer[i] != buffer[2048 + i];
	say(bad ? "edu WRONG\n" : "edu ok\n");
}

static void look_at(u32 slot)
{
	u32 id = config(slot, 0);

	if (id == 0xffffffff)
		return;
	say("pci ");
	say_hex(slot, 2);
	say(" ");
	say_hex(id & 0xffff, 4);
	say(":");
	say_hex(id >> 16, 4);
	say("\n");
	if (id != EDU_ID)
		return;
	if (!(config(slot, 0x10) & ~15u))
		config_set(slot, 0x10, BAR);
	edu_test(slot);
}

static void hotplug(void)
{
	u32 up, down;
	int keep = 0;

	outl(HOTPLUG_BUS, 0);
	for (;;) {
		if ((inb(COM1 + 5) & 1) && inb(COM1) == 'k') {
			keep = 1;
			say("keeps\n");
		}
		up = inl(HOTPLUG_UP);
		for (u32 slot = 0; slot < 32; slot++)
			if (up >> slot & 1)
				look_at(slot);
		down = inl(HOTPLUG_DOWN);
		if (down && !keep) {
			say("let go\n");
			outl(HOTPLUG_EJECT, down);
		}
	}
}

__attribute__((used)) static void run(void)
{
	for (u32 slot = 0; slot < 32; slot++)
		look_at(slot);
	say("up\n");
	hotplug();
}

__attribute__((naked)) void _start(void)
{
	__asm__ volatile("mov $stack + 8192, %esp; call run; hlt");
}
