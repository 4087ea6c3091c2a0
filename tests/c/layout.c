/*
 * Where entries lie in simulated memory, byte for byte (docs/rmp.md, sections 1.1, 1.6 and 1.7): layout.
 *
 * Updates pages, and looks for their entries past the library, at the addresses that the rules give.
 * Exit status 0: they are there.
 */
#include <stdio.h>
#include <string.h>

#include "rmpcore/rmpcore.h"
#include "rmpcore/sparse.h"

#define MIB (UINT64_C(1) << 20)

static int failures;

static void expect(const struct rmpc_mem *mem, const char *what, uint64_t address, uint64_t lo, uint64_t hi)
{
    uint64_t found[2] = {0, 0};

    if (rmpc_mem_read(mem, address, found, sizeof(found)) == RMPC_OK && found[0] == lo && found[1] == hi)
        return;
    printf("%s: at %#llx %#018llx %#018llx, not %#018llx %#018llx\n", what, (unsigned long long)address,
           (unsigned long long)found[0], (unsigned long long)found[1], (unsigned long long)lo, (unsigned long long)hi);
    failures++;
}

static void assign(struct rmpc_rmp *rmp, uint64_t pa)
{
    struct rmpc_cpu cpu = {0};

    if (rmpc_rmpupdate(rmp, &cpu, pa, rmpc_rmp_state_make(0x7000, 1, 0, 0, 5)).code != RMPC_CODE_SUCCESS)
        failures++;
}

/* An entry assigned 4K, gpa 0x7000, ASID 5, on Turin: VMPL0 has everything. */
#define ENTRY (UINT64_C(5) << 51 | 0x7000 | 1)
#define HIGH 0x1f

int main(void)
{
    /* the manual's example: base 0x100000, covering 4 GiB; and the segmented one: exponent 36, segment 9 */
    const struct rmpc_rmp_msrs whole = {.base = 0x100000, .end = 0x1103fff};
    const struct rmpc_rmp_msrs parts = {.base = 0x20000000, .cfg = 36 << 8 | 1};
    const uint64_t rst[] = {0x30000000 | 64, 0, 0, 0, 0, 0, 0, 0, 0, 0x40000000 | 1};
    struct rmpc_range ranges[] = {{0x100000, 0x1004000, NULL},
                                  {0x20000000, 0x5000, NULL},
                                  {0x30000000, 256 * MIB, NULL},
                                  {0x40000000, 4 * MIB, NULL}};
    const struct rmpc_mem mem = {.ranges = ranges, .count = 4};
    struct rmpc_rmp_segment segments[16];
    static struct rmpc_rmp rmp;
    struct rmpc_hardware hardware;
    struct rmpc_rmp_room room;

    for (int i = 0; i < 4; i++)
        if (rmpc_sparse_map(&ranges[i], false) != RMPC_OK)
            return 2;
    rmpc_hardware_init(&hardware, RMPC_PART_TURIN);

    if (rmpc_rmp_init(&rmp, &whole, &mem, &hardware, 0, segments, NULL) != RMPC_OK)
        return 2;
    assign(&rmp, 0xfffff000);
    expect(&mem, "the last page of 4 GiB", 0x1103ff0, ENTRY, HIGH);
    expect(&mem, "its 2 MiB-aligned page counts it", 0x1102000, 1 << 3, 0);
    assign(&rmp, 0x3000);
    expect(&mem, "page 3", 0x104030, ENTRY, HIGH);
    /* two pages of ASID 5 in the counters before the entries */
    expect(&mem, "counters of ASID 4 and 5", 0x100000 + 4 * 8, 0, 2);
    if (rmpc_rmp_covers(&rmp, 0x100000))
        failures++;

    if (rmpc_mem_write(&mem, parts.base + 0x4000, rst, sizeof(rst)) != RMPC_OK ||
        rmpc_rmp_measure(&parts, &mem, &hardware, &room) != RMPC_OK || room.segments < 10)
        return 2;
    static struct rmpc_rmp_segment many[RMPC_RST_ENTRIES];
    if (rmpc_rmp_init(&rmp, &parts, &mem, &hardware, 0, many, NULL) != RMPC_OK)
        return 2;
    assign(&rmp, 0x9000801000);
    expect(&mem, "offset 0x801000 of segment 9", 0x40008010, ENTRY, HIGH);
    expect(&mem, "its 2 MiB-aligned page counts it", 0x40008000, 1 << 3, 0);
    assign(&rmp, 0xfffff000);
    expect(&mem, "no 16 KiB in a segment", 0x30000000 + (UINT64_C(0xfffff) << 4), ENTRY, HIGH);
    expect(&mem, "the counters are before the segment table", 0x20000000 + 4 * 8, 0, 2);
    for (int i = 0; i < 4; i++)
        rmpc_sparse_unmap(&ranges[i]);
    return failures != 0;
}
