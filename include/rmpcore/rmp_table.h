/*
 * The Reverse Map Table: where the entry of a frame lies, in one piece or in segments (rules: docs/rmp.md, sections
 * 1.6 and 1.7), the hardware profile, and the kernel's checks before it uses the table.
 */
#ifndef RMPCORE_RMP_TABLE_H
#define RMPCORE_RMP_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "kernel.h"
#include "mem.h"
#include "rmp_entry.h"
#include "status.h"

RMPC_BEGIN_DECLS

#define RMPC_RMP_BOOKKEEPING UINT64_C(0x4000) /* bytes before the first entry, or before the segment table */
#define RMPC_RMP_ENTRY_SIZE UINT64_C(16)
#define RMPC_RMP_MSR_ADDRESS UINT64_C(0x000fffffffffe000) /* address bits of RMP_BASE and RMP_END: 51:13 */
#define RMPC_RMP_ASIDS 2048                               /* counters in the bookkeeping area */

#define RMPC_VMPLS 4 /* no part has more */

#define RMPC_RMP_CFG_SEGMENTED UINT64_C(1)
#define RMPC_RMP_CFG_SHIFT UINT64_C(0x3f00) /* bits 13:8: a segment covers 2 to this power bytes */

/* The segment table (RST): 512 raw entries after the bookkeeping area. */
#define RMPC_RST_ENTRIES 512
#define RMPC_RST_COVERED UINT64_C(0x00000000000fffff)  /* GiB that the segment covers */
#define RMPC_RST_BASE UINT64_C(0x000ffffffff00000)     /* address of its entries */
#define RMPC_RST_RESERVED UINT64_C(0xfff0000000000000) /* has to be 0 */

/*
 * A part's hardware profile: what differs between parts, and a switch for each point that no public source
 * settles (docs/rmp.md, "Switches").  rmpc_hardware_init() fills in the likeliest value of each.
 */
struct rmpc_hardware {
    uint32_t gpa_bits;               /* bits of a guest physical address that an entry keeps: 13 to 51 */
    uint32_t vmpl0_all;              /* permission byte "all": 0x0f, 0x1f with shadow-stack permission */
    uint32_t rmpread;                /* the part has RMPREAD */
    uint32_t overlap_inner;          /* code for a 4K update inside an assigned 2M entry (row 8b) */
    uint32_t psmash_unassigned;      /* PSMASH's code when there is no assigned 2M entry */
    uint32_t psmash_immutable;       /* PSMASH's code for an immutable entry */
    uint32_t keep_same;              /* an update that changes no owner keeps validated, vmsa, permissions */
    uint32_t reserved_input;         /* reserved bits in the input give FAIL_INPUT (else ignored) */
    uint32_t asid_limit;             /* a higher ASID in the input gives FAIL_INPUT: up to 0x3ff */
    uint32_t lock_follows_immutable; /* bit 63 is written equal to immutable (else 0) */
    uint32_t subpage_count;          /* RMPUPDATE and PSMASH maintain the subpage count */
    uint32_t rmpquery;               /* the part has RMPQUERY */
    uint32_t inuse_first;            /* RMPUPDATE looks for pages in use before row 3 (else after row 6) */
    uint32_t pvalidate_vmpl;         /* PVALIDATE's code at a VMPL other than 0; 0: #GP(0) */
    uint32_t rescind_resets;         /* PVALIDATE that rescinds resets the permissions */
    uint32_t rmpquery_vmpl;          /* RMPQUERY's code for a VMPL below the current one; 0: it answers */
    uint32_t bookkeeping;            /* what a 2M entry counts in the ASID's counter: 1, 512; 0: none is kept */
    uint32_t segmented;              /* the part has the segmented RMP */
    uint32_t segment_min;            /* CPUID's bounds of the segment's exponent: 30 (less segment_unit) to 51 */
    uint32_t segment_max;
    uint32_t segment_cached; /* segments that hardware caches: 1 to 512 */
    uint32_t segment_limit;  /* no more segments than those may be used */
    uint32_t segment_unit;   /* added to CPUID's bounds: 0 (exponents of bytes) or 20 (of MiB) */
    uint32_t vmpls;          /* how many VMPLs there are: 1 to 4 */
    uint32_t vmpl_sss;       /* permission bytes have the shadow-stack bit */
    uint32_t hv_in_use_wr;   /* the host may write to pages that a VMRUN has in use */
};

enum rmpc_part { RMPC_PART_MILAN, RMPC_PART_GENOA, RMPC_PART_TURIN, RMPC_PART_END };

/* RMPC_ERR_ARGUMENT: no such part. */
enum rmpc_status rmpc_hardware_init(struct rmpc_hardware *hardware, enum rmpc_part part);
/* RMPC_ERR_ARGUMENT: a switch outside the values given above. */
enum rmpc_status rmpc_hardware_check(const struct rmpc_hardware *hardware);

/* What says where the table is: the MSRs RMP_BASE, RMP_END (last byte) and RMP_CFG, without the C-bit.  A segmented
 * table does not use end. */
struct rmpc_rmp_msrs {
    uint64_t base;
    uint64_t end;
    uint64_t cfg;
};

/*
 * One segment; a contiguous table is one segment.
 *   entries  host address of the first entry
 *   frames   frames covered, from the segment's first on; 0: none
 *   pa       physical address of the first entry
 *   bytes    size of the table
 *   regions  a word for each 2 MiB region (512 entries), or NULL.  0: nothing of it was ever changed.  Locks, and
 *            what rmpc_rmp_next_used() goes by; its bits are the library's own
 *   reserved the segment-table entry has reserved bits: who needs an entry of it faults; frames is 0
 */
struct rmpc_rmp_segment {
    struct rmpc_rmp_entry *entries;
    uint64_t frames;
    uint64_t pa;
    uint64_t bytes;
    uint32_t *regions;
    bool reserved;
};

/* The pages of one VMRUN, as frames; 0: none. */
struct rmpc_in_use {
    uint64_t vmcb;
    uint64_t vmsa;
    uint64_t avic;
};
#define RMPC_IN_USE 64

/*
 * One RMP.  Set up with rmpc_rmp_init(); then the fields may be read.
 *   segments, count  frame >> shift is the index of its segment
 *   frames           one past the highest covered frame
 *   bookkeeping      host address of the counters of pages by ASID
 *   c_bit            memory-encryption bit, taken out of every address first; 0: none
 *   in_use           the pages of VMRUNs that are under way
 *   raw              an entry was written past the checks: subpage counts are not to be trusted everywhere
 *   entries,
 *   quick            what rmpc_rmp_passes() goes by: the first segment's entries, and how many of them it may use for
 *                    mappings of 4K ([0]) and for larger ones ([1])
 * RMP instructions and access checks may run on one table from many threads at once if it has region words: each 2 MiB
 * region is changed by one thread at a time.  Without region words, and for all other functions, one thread at a
 * time.
 */
struct rmpc_rmp {
    struct rmpc_rmp_segment *segments;
    uint64_t count;
    unsigned shift;
    uint64_t frames;
    struct rmpc_rmp_msrs msrs;
    uint64_t *bookkeeping;
    uint64_t c_bit;
    struct rmpc_hardware hardware;
    struct rmpc_in_use in_use[RMPC_IN_USE];
    size_t in_use_count;
    bool raw;
    const struct rmpc_rmp_entry *entries;
    uint64_t quick[2];
};

/* The kernel's checks: RMPC_OK or one of the RMPC_ERR_RMP_* refusals.  RMPC_ERR_ARGUMENT: a bad hardware profile.
 *   mem      where the segment table is read (RMPC_ERR_RANGE: not backed)
 *   max_pfn  one past the highest frame of usable memory */
enum rmpc_status rmpc_rmp_probe(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                const struct rmpc_hardware *hardware, const struct rmpc_kernel *kernel,
                                uint64_t max_pfn);

/* What a table needs from the caller: segments (structures), and words for the regions of all of them. */
struct rmpc_rmp_room {
    size_t segments;
    size_t words;
};

/*
 * Room that rmpc_rmp_init() needs for this table.  Both read the segment table of a segmented RMP out of mem, which has
 * to hold all of the RMP (RMPC_ERR_RANGE), each segment in one range.
 * RMPC_ERR_RMP_CONFIG: a segmented RMP that hardware does not take.  RMPC_ERR_ARGUMENT: no room for an entry, a
 * contiguous base that is not a multiple of 16, or a bad hardware profile.
 * An entry that RMP_END cuts off is not covered.  The table's contents stay.
 *   segments  room.segments of them
 *   words     room.words words, zeroed; or NULL
 */
enum rmpc_status rmpc_rmp_measure(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                  const struct rmpc_hardware *hardware, struct rmpc_rmp_room *room);
enum rmpc_status rmpc_rmp_init(struct rmpc_rmp *rmp, const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                               const struct rmpc_hardware *hardware, uint64_t c_bit,
                               struct rmpc_rmp_segment *segments, uint32_t *words);

/* The frame's segment; NULL: there is none. */
static inline const struct rmpc_rmp_segment *rmpc_rmp_segment_of(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    uint64_t index = pfn >> rmp->shift;

    return index < rmp->count ? &rmp->segments[index] : NULL;
}

/* The frame's place in its segment. */
static inline uint64_t rmpc_rmp_offset(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    return pfn & ((UINT64_C(1) << rmp->shift) - 1);
}

/* The frame's entry; NULL: not covered. */
static inline struct rmpc_rmp_entry *rmpc_rmp_entry_of(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    const struct rmpc_rmp_segment *segment = rmpc_rmp_segment_of(rmp, pfn);
    uint64_t offset = rmpc_rmp_offset(rmp, pfn);

    return segment && offset < segment->frames ? &segment->entries[offset] : NULL;
}

/* Fetch what an instruction on this frame will need, for callers who know some instructions ahead: 4 to 8, as the heads
 * of regions compete for few lines of a cache.  (Always inline: gcc takes a function that only fetches for one that
 * does nothing, and drops the call.) */
__attribute__((always_inline)) static inline void rmpc_rmp_prefetch(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    const struct rmpc_rmp_entry *entry = rmpc_rmp_entry_of(rmp, pfn);

    if (!entry)
        return;
    __builtin_prefetch(entry, 1);
    __builtin_prefetch(entry - pfn % RMPC_REGION_FRAMES, 1);
}

static inline bool rmpc_rmp_covers(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    return rmpc_rmp_entry_of(rmp, pfn) != NULL;
}

/* Does the RMP itself lie in this frame? */
bool rmpc_rmp_is_own(const struct rmpc_rmp *rmp, uint64_t pfn);

/* Raw access as firmware has it, unchecked; never half an entry.  RMPC_ERR_ARGUMENT: frame not covered. */
enum rmpc_status rmpc_rmp_get(const struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry *out);
enum rmpc_status rmpc_rmp_set(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry entry);

/* Tell the library that entries of this frame's region were written past it, in simulated memory. */
void rmpc_rmp_touch(struct rmpc_rmp *rmp, uint64_t pfn);

/* Trust the subpage counts of regions written past the checks, where they are what the region's entries say: for who has
 * filled a table from a dump.  Until then checks of large mappings look at all entries of such a region, and those of
 * rmpc_rmp_passes() at any region. */
void rmpc_rmp_recount(struct rmpc_rmp *rmp);

/* The next frame at or after pfn whose entry is not zero; rmp->frames if there is none.  Reads only regions that
 * were changed when the table has region words. */
uint64_t rmpc_rmp_next_used(const struct rmpc_rmp *rmp, uint64_t pfn);

RMPC_END_DECLS

#endif
