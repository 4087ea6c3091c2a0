/*
 * rmp §1.7: where the entry of a frame lies in a segmented table.  It never lies outside the table, and no sum overflows.
 *
 * For every segment-table entry, every segment size from 1 GiB to 2^51, every frame number of 64 bits: read_segment() of
 * csrc/rmp_table.c, and the inline functions that find() of csrc/rmp_internal.h goes by, themselves.  No loop.
 *
 * Said of numbers: the segment's frames, address and bytes, and a frame's place in it.  That find() adds the place to the
 * pointer that rmpc_mem_at() gave for these very bytes is read, not proven.  The frame's segment is the one
 * that was read.
 */
#include "../csrc/rmp_table.c"
#include "rules.h"

uint64_t asked_pa, asked_size;
uint8_t bytes[RMPC_RMP_BOOKKEEPING];

void *rmpc_mem_at(const struct rmpc_mem *mem, uint64_t pa, uint64_t size)
{
    (void)mem;
    asked_pa = pa;
    asked_size = size;
    return nondet_bool() ? bytes : NULL;
}

int main(void)
{
    struct rmpc_rmp rmp;
    struct rmpc_rmp_segment segment;
    const uint64_t pfn = nondet_u64();

    rmp.segments = &segment;
    const uint64_t raw = nondet_u64();
    const unsigned shift = nondet_unsigned();

    ASSUME(shift >= 30 && shift <= 51);
    if (!read_segment(raw, shift, NULL, &segment))
        return 0;
    rmp.shift = shift - RMPC_PAGE_SHIFT;
    rmp.count = nondet_u64();
    if (pfn >> rmp.shift >= rmp.count)
        CLAIM(!rmpc_rmp_segment_of(&rmp, pfn), "a frame beyond the last segment is in none");
    const uint64_t place = pfn & ((UINT64_C(1) << (shift - 12)) - 1);
    const uint64_t gib = raw & 0xfffff, table = raw & UINT64_C(0x000ffffffff00000);
    const bool covered = !(raw >> 52) && place >> 18 < gib;
    const uint64_t last = table + segment.bytes - 1;
    CLAIM(!gib || segment.bytes == (gib < UINT64_C(1) << (shift - 30) ? gib : UINT64_C(1) << (shift - 30)) << 22,
          "4 MiB for each GiB");
    CLAIM(!gib || (asked_pa == table && asked_size == segment.bytes), "memory is asked for all of the segment's table");
    CLAIM(rmpc_rmp_offset(&rmp, pfn) == place, "the frame's place in its segment");
    CLAIM((place < segment.frames) == covered, "covered as the rule says");
    if (place >= segment.frames)
        return 0;
    const uint64_t head = place & ~(RMPC_REGION_FRAMES - 1);
    const uint64_t address = segment.pa + 16 * place;
    CLAIM(segment.pa == table && address >= table && address <= last && last - address >= 15, "all of it in the table");
    CLAIM(segment.frames - head <= (last - table + 1) / 16 - head, "and all of its region that is left");
    CLAIM(place / RMPC_REGION_FRAMES < words_for(segment.frames), "there is a word for the region");
    REACHED("an entry");
}
