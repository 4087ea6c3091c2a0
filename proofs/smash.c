/*
 * rmp §2.3 row 5: the 512 entries that PSMASH writes.
 *
 * For any contents of the region, any 2 MiB entry, each width of guest addresses that rmpc_hardware_check() takes (13 to
 * 51), each of the 512 entries: smash() of csrc/rmp_insn.c itself.  Its loop has an invariant, in run.
 *
 * Assumed: one thread; entries are stored as two quadwords (the core's way under ThreadSanitizer) and not by one
 * instruction, which CBMC cannot read.  No counter is kept (§1.6 has its own rule).  When smash() is called is not
 * proven.
 */
#include "../csrc/rmp_table.c"
#include "../csrc/rmp_insn.c"
#include "rules.h"

void *rmpc_mem_at(const struct rmpc_mem *mem, uint64_t pa, uint64_t size)
{
    (void)mem, (void)pa, (void)size;
    return NULL;
}

uint64_t number; /* of the entry that is looked at: any */
uint64_t start;  /* guest address of the 2 MiB page */
uint64_t lo, hi; /* what the entry has to hold after the loop */

int main(void)
{
    struct rmpc_rmp_entry table[RMPC_REGION_FRAMES]; /* not global: CBMC would begin with 512 times zero */
    const struct place place = {.entry = table, .head = table, .left = RMPC_REGION_FRAMES};
    const struct rmpc_rmp_entry old = {nondet_u64(), nondet_u64()};
    const uint64_t gpa = UINT64_C(0x0007fffffffff000), size = 2, count = UINT64_C(0x1ff) << 3;
    struct rmpc_rmp rmp;

    rmp.hardware.bookkeeping = 0;
    ASSUME(rmp.hardware.gpa_bits >= 13 && rmp.hardware.gpa_bits <= 51);
    number = nondet_u64();
    ASSUME(number < RMPC_REGION_FRAMES);
    start = old.lo & gpa;
    lo = (old.lo & ~(gpa | size | count)) |
         ((start + number * 4096) & ((UINT64_C(1) << rmp.hardware.gpa_bits) - 1) & ~UINT64_C(0xfff));
    hi = old.hi;

    smash(&rmp, &place, old);

    const bool counted = !number && rmp.hardware.subpage_count;
    CLAIM(table[number].lo == (counted ? lo | count : lo), "gpa + i * 4 KiB, size 0, count 511 in the first alone");
    CLAIM(table[number].hi == old.hi, "permissions are kept");
    REACHED("a page that was smashed");
    if (counted)
        REACHED("with its count");
}
