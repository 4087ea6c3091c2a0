/*
 * rmp §1.6 and §1.7: where the entry of a frame lies.  It never lies outside the table, and no sum overflows.
 *
 * For every RMP_BASE and RMP_END (PART 1), every segment-table entry and segment size from 1 GiB to 2^51 (PART 2), every
 * frame number of 64 bits: read_contiguous() and read_segment() of csrc/rmp_table.c, and the inline functions that
 * find() of csrc/rmp_internal.h goes by, themselves.  No loop.
 *
 * Said of numbers: the segment's frames, address and bytes, and a frame's place in it.  That find() adds the place to the
 * pointer that rmpc_mem_at() gave for these very bytes is read, not proven.  In PART 2 the frame's segment is the one
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
#if PART == 1
    const struct rmpc_rmp_msrs msrs = {nondet_u64(), nondet_u64(), 0};

    if (read_contiguous(&msrs, NULL, &segment) != RMPC_OK)
        return 0;
    rmp.count = 1;
    rmp.shift = WHOLE_SHIFT;
    CLAIM(rmpc_rmp_segment_of(&rmp, pfn) == (pfn < RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT ? &segment : NULL),
          "a frame of physical memory is in the one segment");
    CLAIM(asked_pa == msrs.base && asked_size - 1 == msrs.end - msrs.base, "memory is asked for all of the table");
    ASSUME(pfn < RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT);
    const uint64_t place = pfn, table = msrs.base + 0x4000, last = msrs.end;
    /* "covered if its whole entry lies at or below RMP_END" */
    const bool covered = table + 16 * pfn + 15 <= last;
#else
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
#endif
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
#if PART == 1
    if (segment.frames - head < RMPC_REGION_FRAMES)
        REACHED("in a region that is cut off");
#endif
}
