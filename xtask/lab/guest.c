/* The lab's guest: a 32-bit multiboot kernel that looks like a busy little VM from outside.
 *
 * It drives legacy virtio devices on QEMU's i440fx machine ("pc"): network, disk and balloon. Each time the
 * balloon's statistics are asked for it answers, then does one round of work: every disk is read, written and
 * flushed, every network card sends ARP probes that the host answers. So all counters that libvirt shows move at
 * the balloon's pace. Between two polls it halts: no timer, next to no CPU time. It takes part in PCI hot-plug: a
 * card plugged in is put to work, a card that the host wants back is let go.
 *
 * Limits: one bus, function 0 of each of its 32 slots; rings of up to 1024 entries (QEMU's bound); memory that the
 * balloon takes is not given back, only counted. A fault resets the machine, which ends the domain.
 *
 * Parameters on the kernel's command line: net-kib=N makes every network card send N KiB more in each round.
 *
 * Sources: multiboot 0.6.96; virtio 1.1, the parts "Legacy Interface"; QEMU's docs/specs/acpi_pci_hotplug.rst.
 *
 * Memory (32 MiB):
 *
 *   0x00100000  this kernel, then what the loader tells it
 *   0x00800000  one arena of 256 KiB a PCI slot: rings and receive buffers, touched only where a device is
 *   0x01000000  unused; the BIOS keeps its tables below the end
 */
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PACKED __attribute__((packed))
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum {
    PAGE = 4096,
    SLOTS = 32,
    QUEUES = 3,           /* a device: the balloon has most (inflate, deflate, statistics) */
    RING_BYTES = 32768,   /* a ring of 1024 descriptors: 20 KiB + 8 KiB + 6, in whole pages */
    ARENA_BASE = 0x800000,
    ARENA_BYTES = 0x40000,
    SPIN_LIMIT = 50000000 /* tries until a device counts as dead: tens of seconds */
};

/* ---- Ports ---------------------------------------------------------------------------------------------------- */

static inline void out8(u16 port, u8 value)
{
    asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline void out16(u16 port, u16 value)
{
    asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline void out32(u16 port, u32 value)
{
    asm volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u16 in16(u16 port)
{
    u16 value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void memory_barrier(void)
{
    asm volatile("lock; addl $0, (%%esp)" ::: "memory");
}

static void zero(void *at, u32 bytes)
{
    asm volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(0) : "memory");
}

/* The first serial port. The lab looks for this text when it tries whether KVM works; libvirt's VMs have no port,
   there the bytes go nowhere. */
static void say(const char *text)
{
    enum { SERIAL = 0x3f8 };
    for (; *text; text++)
        out8(SERIAL, *text);
}

/* ---- PCI configuration, mechanism 1 ----------------------------------------------------------------------------
 *
 *   0xcf8   31      23..16   15..11   10..8      7..2
 *           enable  bus      slot     function   register
 */

enum {
    PCI_ADDRESS = 0xcf8,
    PCI_DATA = 0xcfc,
    PCI_ID = 0x00,      /* vendor in the low half, device in the high half */
    PCI_COMMAND = 0x04, /* bit 0: answers to ports, bit 2: may read and write memory */
    PCI_BAR0 = 0x10,    /* bit 0: a port range */
    PCI_IRQ = 0x3c      /* interrupt line, as the BIOS wired it */
};

static u32 pci_read(u32 slot, u32 reg)
{
    out32(PCI_ADDRESS, 1u << 31 | slot << 11 | reg);
    return in32(PCI_DATA);
}

static void pci_write(u32 slot, u32 reg, u32 value)
{
    out32(PCI_ADDRESS, 1u << 31 | slot << 11 | reg);
    out32(PCI_DATA, value);
}

/* ---- Virtio rings ----------------------------------------------------------------------------------------------
 *
 * Registers of a legacy device, in the port range of BAR 0:
 *
 *   0x00  u32  features that the device has         0x0e  u16  queue that the next two lines mean
 *   0x04  u32  features that the driver takes       0x10  u16  notify: "look at queue N"
 *   0x08  u32  queue's address, in pages            0x12  u8   status
 *   0x0c  u16  queue's size, 0: no such queue       0x13  u8   interrupt cause; reading clears it
 *                                                   0x14  ...  the device's own
 *
 * A queue of n descriptors; the size is the device's to say (128 to 1024, by QEMU's version):
 *
 *   0           n * 16 bytes   descriptors { u64 address; u32 length; u16 flags; u16 next }
 *   16 n        u16 flags, u16 index, n * u16                       "available": driver to device
 *   next page   u16 flags, u16 index, n * { u32 head; u32 length }  "used": device to driver
 *
 * The indices only grow and wrap at 65536; the place in the ring is index % n. All is little-endian.
 */

enum {
    REG_DEVICE_FEATURES = 0x00,
    REG_DRIVER_FEATURES = 0x04,
    REG_QUEUE_PAGE = 0x08,
    REG_QUEUE_SIZE = 0x0c,
    REG_QUEUE_SELECT = 0x0e,
    REG_NOTIFY = 0x10,
    REG_STATUS = 0x12,
    REG_INTERRUPT = 0x13,
    REG_CONFIG = 0x14,

    STATUS_RESET = 0,
    STATUS_ACKNOWLEDGED = 1,
    STATUS_DRIVER = 2,
    STATUS_DRIVER_OK = 4,

    DESC_NEXT = 1,  /* another descriptor follows */
    DESC_WRITE = 2, /* the device writes here */

    NO_INTERRUPT = 1 /* in the available ring's flags */
};

struct descriptor {
    u64 address;
    u32 length;
    u16 flags;
    u16 next;
} PACKED;

struct available {
    u16 flags;
    u16 index;
    u16 heads[];
};

struct used {
    u16 flags;
    u16 index;
    struct {
        u32 head;
        u32 length;
    } entries[];
};

struct queue {
    u16 size; /* 0: the device has no such queue */
    u16 seen; /* entries of the used ring that were taken */
    struct descriptor *descriptors;
    volatile struct available *available;
    volatile struct used *used;
};

enum kind { NONE, NET, DISK, BALLOON };

struct device {
    enum kind kind;
    u16 port;
    u8 slot;
    struct queue queues[QUEUES];
};

static struct device devices[SLOTS];

static u8 *arena(const struct device *device)
{
    return (u8 *)(ARENA_BASE + device->slot * ARENA_BYTES);
}

static struct queue *open_queue(struct device *device, u16 index, u16 flags)
{
    struct queue *queue = &device->queues[index];
    u8 *ring = arena(device) + index * RING_BYTES;

    out16(device->port + REG_QUEUE_SELECT, index);
    u32 size = in16(device->port + REG_QUEUE_SIZE);
    u32 used_at = (size * sizeof(struct descriptor) + 2 * sizeof(u16) + size * sizeof(u16) + PAGE - 1) & -PAGE;
    if (size == 0 || used_at + 2 * sizeof(u16) + size * 8 > RING_BYTES)
        return NULL;

    zero(ring, RING_BYTES);
    queue->size = size;
    queue->seen = 0;
    queue->descriptors = (struct descriptor *)ring;
    queue->available = (struct available *)(ring + size * sizeof(struct descriptor));
    queue->used = (struct used *)(ring + used_at);
    queue->available->flags = flags;
    out32(device->port + REG_QUEUE_PAGE, (u32)ring / PAGE);
    return queue;
}

static void describe(struct queue *queue, u16 at, const volatile void *address, u32 length, u16 flags)
{
    queue->descriptors[at] = (struct descriptor){ (u32)address, length, flags, at + 1 };
}

/* Gives the chain that begins at descriptor `head` to the device, which learns of it from notify(). */
static void offer(struct queue *queue, u16 head)
{
    queue->available->heads[queue->available->index % queue->size] = head;
    memory_barrier();
    queue->available->index++;
}

static void notify(struct device *device, u16 index)
{
    memory_barrier();
    out16(device->port + REG_NOTIFY, index);
}

/* Waits until the device has done all that was offered. A device that never does is left alone from then on. */
static void finish(struct device *device, struct queue *queue)
{
    for (u32 spins = 0; queue->used->index != queue->available->index; spins++) {
        if (spins == SPIN_LIMIT) {
            device->kind = NONE;
            return;
        }
        asm volatile("pause");
    }
    queue->seen = queue->used->index;
}

/* ---- Disk ------------------------------------------------------------------------------------------------------ */

enum {
    DISK_READ = 0,
    DISK_WRITE = 1,
    DISK_FLUSH = 4,
    DISK_FEATURE_FLUSH = 1 << 9,
    SECTOR = 512,
    READ_BYTES = 8192,
    WRITE_BYTES = 4096,
    WRITE_FIRST_SECTOR = 64,
    WRITE_PLACES = 64 /* writes go round in 256 KiB, so that an image does not grow */
};

static u8 disk_buffer[READ_BYTES] __attribute__((aligned(4096)));

static void disk_request(struct device *device, u32 type, u64 sector, u32 length)
{
    static struct {
        u32 type;
        u32 priority;
        u64 sector;
    } PACKED header;
    static volatile u8 status;
    struct queue *queue = &device->queues[0];
    u16 last = 1;

    header.type = type;
    header.sector = sector;
    describe(queue, 0, &header, sizeof header, DESC_NEXT);
    if (length)
        describe(queue, last++, disk_buffer, length, DESC_NEXT | (type == DISK_READ ? DESC_WRITE : 0));
    describe(queue, last, &status, sizeof status, DESC_WRITE);
    offer(queue, 0);
    notify(device, 0);
    finish(device, queue);
}

/* The disk with number n does n + 1 writes, so that no two disks of a VM show the same numbers. */
static void disk_round(struct device *device, u32 number, u32 round)
{
    disk_request(device, DISK_READ, 0, READ_BYTES);
    for (u32 i = 0; i <= number && device->kind == DISK; i++) {
        u32 place = (round + i) % WRITE_PLACES;
        disk_request(device, DISK_WRITE, WRITE_FIRST_SECTOR + place * (WRITE_BYTES / SECTOR), WRITE_BYTES);
    }
    if (device->kind == DISK)
        disk_request(device, DISK_FLUSH, 0, 0);
}

/* ---- Network card ----------------------------------------------------------------------------------------------
 *
 * A frame on a virtio ring:  10 bytes of offload header, all 0  |  Ethernet frame
 *
 * An ARP probe (RFC 5227) asks whether an address is taken; the lab's bridge has that address, and a Linux host
 * answers for it on every interface. So received counters move too, on bridged cards and on bare taps.
 */

enum {
    RECEIVE = 0,
    TRANSMIT = 1,
    NET_FEATURE_MAC = 1 << 5,
    RECEIVE_BUFFERS = 32,
    BUFFER_BYTES = 2048,
    BUFFERS_AT = QUEUES * RING_BYTES, /* in the arena */
    BATCH = 64,                       /* bulk frames a notification */
    BULK_FRAME = 1514
};

/* The lab's bridge has this address (lab/host.rs holds the same one). */
#define HOST_ADDRESS { 169, 254, 87, 1 }

struct ethernet {
    u8 offload[10];
    u8 to[6];
    u8 from[6];
    u8 type[2];
} PACKED;

struct probe {
    struct ethernet ethernet;
    u8 fixed[8]; /* Ethernet, IPv4, address lengths 6 and 4, request */
    u8 sender_mac[6];
    u8 sender_ip[4]; /* all 0: a probe */
    u8 target_mac[6];
    u8 target_ip[4];
    u8 padding[18]; /* to Ethernet's least length of 60 */
} PACKED;

static struct probe probe = {
    .ethernet = { .to = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, .type = { 0x08, 0x06 } },
    .fixed = { 0, 1, 0x08, 0, 6, 4, 0, 1 },
    .target_ip = HOST_ADDRESS,
};

/* Bulk traffic: to an address that nobody has, of the type for local experiments. The host drops it unread. */
static union {
    struct ethernet ethernet;
    u8 bytes[sizeof(((struct ethernet *)0)->offload) + BULK_FRAME];
} bulk = { .ethernet = { .to = { 0x02, 0, 0, 0, 0, 0x57 }, .type = { 0x88, 0xb5 } } };

static u32 bulk_kib;

static void net_receive(struct device *device)
{
    struct queue *queue = &device->queues[RECEIVE];
    if (queue->seen == queue->used->index)
        return;
    while (queue->seen != queue->used->index)
        offer(queue, queue->used->entries[queue->seen++ % queue->size].head);
    notify(device, RECEIVE);
}

static void net_open(struct device *device)
{
    struct queue *queue = open_queue(device, RECEIVE, NO_INTERRUPT);
    if (!queue || !open_queue(device, TRANSMIT, NO_INTERRUPT)) {
        device->kind = NONE;
        return;
    }
    for (u16 i = 0; i < RECEIVE_BUFFERS && i < queue->size; i++) {
        describe(queue, i, arena(device) + BUFFERS_AT + i * BUFFER_BYTES, BUFFER_BYTES, DESC_WRITE);
        offer(queue, i);
    }
}

static void net_send(struct device *device, struct ethernet *frame, u32 bytes, u32 count)
{
    struct queue *queue = &device->queues[TRANSMIT];
    for (int i = 0; i < 6; i++)
        frame->from[i] = in8(device->port + REG_CONFIG + i);
    describe(queue, 0, frame, bytes, 0);
    while (count && device->kind == NET) {
        for (u32 i = 0; i < BATCH && count; i++, count--)
            offer(queue, 0); /* sent as it is, so one descriptor serves the whole batch */
        notify(device, TRANSMIT);
        finish(device, queue);
    }
}

/* The card with number n sends n + 1 probes, so that no two cards of a VM show the same numbers. */
static void net_round(struct device *device, u32 number)
{
    net_receive(device);
    for (int i = 0; i < 6; i++)
        probe.sender_mac[i] = in8(device->port + REG_CONFIG + i);
    net_send(device, &probe.ethernet, sizeof probe, number + 1);
    net_send(device, &bulk.ethernet, sizeof bulk, (bulk_kib * 1024u) / BULK_FRAME);
}

/* ---- Balloon --------------------------------------------------------------------------------------------------- */

enum {
    STATISTICS = 2, /* the queue */
    BALLOON_FEATURE_STATISTICS = 1 << 1,
    BALLOON_WANTED = REG_CONFIG, /* u32: pages that the host wants */
    BALLOON_GIVEN = REG_CONFIG + 4
};

/* Places in the list below are the tags of virtio's balloon statistics. */
enum { SWAP_IN, SWAP_OUT, MAJOR_FAULTS, MINOR_FAULTS, FREE, TOTAL, AVAILABLE, CACHES, TAGS };

static u64 memory_bytes;

static void balloon_resize(struct device *device)
{
    out32(device->port + BALLOON_GIVEN, in32(device->port + BALLOON_WANTED));
}

/* Lays the next answer out. The device keeps it until it wants new numbers, then hands the buffer back. All values
   are made up, follow from the round, and differ from each other: what is read from outside can be told apart. */
static void balloon_answer(struct device *device, u32 round)
{
    static struct {
        u16 tag;
        u64 value;
    } PACKED answer[TAGS];
    u64 values[TAGS] = {
        [SWAP_IN] = round * 4096ull,
        [SWAP_OUT] = round * 8192ull,
        [MAJOR_FAULTS] = round * 3ull,
        [MINOR_FAULTS] = round * 1000ull + 7,
        [FREE] = memory_bytes / 2 - round % 16 * 65536,
        [TOTAL] = memory_bytes,
        [AVAILABLE] = memory_bytes / 4 * 3 - round % 16 * 65536,
        [CACHES] = memory_bytes / 8,
    };
    struct queue *queue = &device->queues[STATISTICS];

    for (u16 tag = 0; tag < TAGS; tag++) {
        answer[tag].tag = tag;
        answer[tag].value = values[tag];
    }
    describe(queue, 0, answer, sizeof answer, 0);
    offer(queue, 0);
    notify(device, STATISTICS);
}

/* True once for each time that the host asked. */
static int balloon_asked(struct device *device)
{
    struct queue *queue = &device->queues[STATISTICS];
    if (device->kind != BALLOON || queue->size == 0 || queue->seen == queue->used->index)
        return 0;
    queue->seen = queue->used->index;
    return 1;
}

/* ---- Interrupts: they only wake the processor and lower their lines; the work is done in the main loop ---------- */

enum {
    PIC1 = 0x20,
    PIC2 = 0xa0,
    PIC_DATA = 1,
    PIC_DONE = 0x20,
    FIRST_VECTOR = 32,
    VECTORS = 16,
    CASCADE_IRQ = 2,
    ACPI_IRQ = 9,

    GPE_STATUS = 0xafe0, /* QEMU's PIIX4: general purpose events; writing a 1 clears */
    GPE_ENABLE = 0xafe2,
    GPE_PCI_HOTPLUG = 1 << 1
};

static u16 irqs_wanted;

static void irq_mask(void)
{
    out8(PIC1 + PIC_DATA, ~irqs_wanted & 0xff);
    out8(PIC2 + PIC_DATA, ~irqs_wanted >> 8);
}

__attribute__((used)) static void on_interrupt(void)
{
    for (int slot = 0; slot < SLOTS; slot++)
        if (devices[slot].port)
            in8(devices[slot].port + REG_INTERRUPT);
    out8(GPE_STATUS, GPE_PCI_HOTPLUG);
    out8(PIC2, PIC_DONE);
    out8(PIC1, PIC_DONE);
}

/* Returns without `iret`: some nested KVMs do not get over it, and the guest would hang after its first interrupt.
   The flags come back first, then `ret` takes the address and drops the code segment and the flags. */
asm(".text\n"
    "interrupt:\n"
    "    pusha\n"
    "    cld\n"
    "    call on_interrupt\n"
    "    popa\n"
    "    pushl 8(%esp)\n"
    "    popfl\n"
    "    ret $8\n");

extern void interrupt(void);

static void interrupts_open(void)
{
    enum { CODE = 8, GATE = 0x8e }; /* GATE: present, ring 0, 32-bit interrupt gate */
    static const u64 segments[] = { 0, 0x00cf9a000000ffffull, 0x00cf92000000ffffull }; /* flat code, flat data */
    static struct {
        u16 low, selector;
        u8 zero, type;
        u16 high;
    } PACKED gates[FIRST_VECTOR + VECTORS];
    struct {
        u16 limit;
        u32 base;
    } PACKED gdt = { sizeof segments - 1, (u32)segments }, idt = { sizeof gates - 1, (u32)gates };

    asm volatile("lgdt %0\n"
                 "ljmp $8, $1f\n"
                 "1: mov $16, %%ax\n"
                 "mov %%ax, %%ds\n"
                 "mov %%ax, %%es\n"
                 "mov %%ax, %%ss\n" ::"m"(gdt)
                 : "eax", "memory");
    for (u32 i = FIRST_VECTOR; i < LENGTH(gates); i++) {
        gates[i].low = (u32)interrupt & 0xffff;
        gates[i].selector = CODE;
        gates[i].type = GATE;
        gates[i].high = (u32)interrupt >> 16;
    }
    asm volatile("lidt %0" ::"m"(idt));

    /* The two interrupt controllers: initialise, vectors, who hangs on whom, 8086 mode. */
    static const u8 first[] = { FIRST_VECTOR, 1 << CASCADE_IRQ, 1 };
    static const u8 second[] = { FIRST_VECTOR + 8, CASCADE_IRQ, 1 };
    out8(PIC1, 0x11);
    out8(PIC2, 0x11);
    for (u32 i = 0; i < LENGTH(first); i++) {
        out8(PIC1 + PIC_DATA, first[i]);
        out8(PIC2 + PIC_DATA, second[i]);
    }
    irqs_wanted = 1 << CASCADE_IRQ | 1 << ACPI_IRQ;
    irq_mask();
    out8(GPE_ENABLE, GPE_PCI_HOTPLUG);
}

/* ---- Devices: found at start, plugged in, taken away -----------------------------------------------------------
 *
 * QEMU's ports for PCI hot-plug; a bit is a slot of the bus that was selected:
 *
 *   0xae00  u32  up: plugged in since the last reading (reading clears)
 *   0xae04  u32  down: the host wants these back
 *   0xae08  u32  write: let go
 *   0xae10  u32  bus; the root is 0
 */

enum {
    HOTPLUG_UP = 0xae00,
    HOTPLUG_DOWN = 0xae04,
    HOTPLUG_EJECT = 0xae08,
    HOTPLUG_BUS = 0xae10,

    VENDOR_VIRTIO = 0x1af4,
    LEGACY_NET = 0x1000,
    LEGACY_DISK = 0x1001,
    LEGACY_BALLOON = 0x1002,

    /* The BIOS gives ports only to what is there at start. For later devices: free on this machine. */
    LATE_PORTS = 0x2000,
    LATE_PORTS_EACH = 0x100
};

static void device_open(u32 slot, u32 round)
{
    struct device *device = &devices[slot];
    u32 id = pci_read(slot, PCI_ID);
    u32 bar = pci_read(slot, PCI_BAR0);

    device->kind = NONE;
    device->slot = slot;
    if ((id & 0xffff) != VENDOR_VIRTIO || id >> 16 < LEGACY_NET || id >> 16 > LEGACY_BALLOON || !(bar & 1))
        return;
    if ((bar & ~3u) == 0) {
        bar = LATE_PORTS + slot * LATE_PORTS_EACH;
        pci_write(slot, PCI_BAR0, bar);
    }
    pci_write(slot, PCI_COMMAND, (pci_read(slot, PCI_COMMAND) & 0xffff) | 1 | 4);

    u16 port = device->port = bar & ~3u;
    out8(port + REG_STATUS, STATUS_RESET);
    out8(port + REG_STATUS, STATUS_ACKNOWLEDGED | STATUS_DRIVER);
    u32 features = in32(port + REG_DEVICE_FEATURES);
    switch (id >> 16) {
    case LEGACY_NET:
        out32(port + REG_DRIVER_FEATURES, features & NET_FEATURE_MAC);
        device->kind = NET;
        net_open(device);
        break;
    case LEGACY_DISK:
        out32(port + REG_DRIVER_FEATURES, features & DISK_FEATURE_FLUSH);
        device->kind = open_queue(device, 0, NO_INTERRUPT) ? DISK : NONE;
        break;
    case LEGACY_BALLOON:
        out32(port + REG_DRIVER_FEATURES, features & BALLOON_FEATURE_STATISTICS);
        device->kind = BALLOON;
        open_queue(device, 0, NO_INTERRUPT);
        open_queue(device, 1, NO_INTERRUPT);
        if (features & BALLOON_FEATURE_STATISTICS)
            open_queue(device, STATISTICS, 0);
        break;
    }
    out8(port + REG_STATUS, STATUS_ACKNOWLEDGED | STATUS_DRIVER | STATUS_DRIVER_OK);
    if (device->kind == NET)
        notify(device, RECEIVE);
    if (device->kind == BALLOON) {
        u32 irq = pci_read(slot, PCI_IRQ) & 0xff;
        if (irq < VECTORS)
            irqs_wanted |= 1 << irq;
        irq_mask();
        balloon_resize(device);
        if (device->queues[STATISTICS].size)
            balloon_answer(device, round);
    }
}

static void device_close(u32 slot)
{
    struct device *device = &devices[slot];
    if (device->port)
        out8(device->port + REG_STATUS, STATUS_RESET);
    zero(device, sizeof *device);
    out32(HOTPLUG_EJECT, 1u << slot);
}

static void work_round(u32 round)
{
    u32 disks = 0, cards = 0;
    for (u32 slot = 0; slot < SLOTS; slot++) {
        if (devices[slot].kind == DISK)
            disk_round(&devices[slot], disks++, round);
        else if (devices[slot].kind == NET)
            net_round(&devices[slot], cards++);
    }
}

/* Returns whether anything was plugged in. */
static int hotplug(u32 round)
{
    out32(HOTPLUG_BUS, 0);
    u32 up = in32(HOTPLUG_UP), down = in32(HOTPLUG_DOWN);
    for (u32 slot = 0; slot < SLOTS; slot++) {
        if (down >> slot & 1)
            device_close(slot);
        else if (up >> slot & 1)
            device_open(slot, round);
    }
    return (up & ~down) != 0;
}

/* ---- Start ----------------------------------------------------------------------------------------------------- */

enum { INFO_HAS_MEMORY = 1 << 0, INFO_HAS_COMMAND_LINE = 1 << 2 };

struct multiboot_info {
    u32 flags;
    u32 lower_kib;
    u32 upper_kib; /* from 1 MiB on */
    u32 boot_device;
    const char *command_line;
};

__attribute__((section(".multiboot"), used, aligned(4))) static const u32 multiboot_header[] = {
    0x1badb002, /* magic */
    2,          /* flags: tell me the memory's size */
    -(0x1badb002 + 2),
};

/* The number after `key` in `text`, 0 where it is not. */
static u32 parameter(const char *text, const char *key)
{
    for (; *text; text++) {
        u32 i = 0, value = 0;
        while (key[i] && text[i] == key[i])
            i++;
        if (key[i])
            continue;
        for (; text[i] >= '0' && text[i] <= '9'; i++)
            value = value * 10 + (text[i] - '0');
        return value;
    }
    return 0;
}

__attribute__((used)) static void run(const struct multiboot_info *info)
{
    u32 round = 1;

    if (info->flags & INFO_HAS_MEMORY)
        memory_bytes = (info->upper_kib + 1024ull) * 1024;
    if (info->flags & INFO_HAS_COMMAND_LINE)
        bulk_kib = parameter(info->command_line, " net-kib=");
    interrupts_open();
    for (u32 slot = 0; slot < SLOTS; slot++)
        device_open(slot, round);
    asm volatile("int %0" ::"i"(FIRST_VECTOR) : "memory"); /* who greets has come back from an interrupt */
    say("kvmetry lab guest is up\n");
    work_round(round);

    for (;;) {
        int asked = 0;
        asm volatile("cli" ::: "memory");
        int plugged = hotplug(round);
        for (u32 slot = 0; slot < SLOTS; slot++) {
            if (devices[slot].kind == BALLOON)
                balloon_resize(&devices[slot]);
            if (balloon_asked(&devices[slot])) {
                balloon_answer(&devices[slot], ++round);
                asked = 1;
            }
        }
        if (asked || plugged)
            work_round(round);
        else
            asm volatile("sti; hlt" ::: "memory"); /* sti takes effect after hlt: no interrupt is slept through */
    }
}

asm(".globl start\n"
    "start:\n"
    "    cli\n"
    "    mov $stack_end, %esp\n"
    "    push %ebx\n"
    "    call run\n"
    "    .bss\n"
    "    .balign 16\n"
    "    .skip 16384\n"
    "stack_end:\n"
    "    .text\n");
