/*
 * The Reverse Map Table: where the entry of a frame lies (contiguous table; rules: docs/rmp.md, section 1.6),
 * the hardware profile, and the kernel's checks before it uses the table.
 */
#ifndef RMPCORE_RMP_TABLE_H
#define RMPCORE_RMP_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "event.h"
#include "mem.h"
#include "rmp_entry.h"
#include "status.h"

#define RMPC_RMP_BOOKKEEPING UINT64_C(0x4000) /* bytes before the first entry */
#define RMPC_RMP_ENTRY_SIZE UINT64_C(16)
#define RMPC_RMP_MSR_ADDRESS UINT64_C(0x000fffffffffe000) /* address bits of RMP_BASE and RMP_END: 51:13 */

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
};

enum rmpc_part { RMPC_PART_MILAN, RMPC_PART_GENOA, RMPC_PART_END };

/* RMPC_ERR_ARGUMENT: no such part. */
enum rmpc_status rmpc_hardware_init(struct rmpc_hardware *hardware, enum rmpc_part part);
/* RMPC_ERR_ARGUMENT: a switch outside the values given above. */
enum rmpc_status rmpc_hardware_check(const struct rmpc_hardware *hardware);

#define RMPC_INJECT_RUNS 64
#define RMPC_INJECT_MAX_COUNT (UINT64_C(1) << 20)

/* Codes that coming RMPUPDATEs and PSMASHes answer instead of executing, in runs, oldest first. */
struct rmpc_inject_run {
    uint32_t code; /* 0: execute normally */
    uint64_t count;
};
struct rmpc_inject {
    struct rmpc_inject_run runs[RMPC_INJECT_RUNS];
    size_t count;
};

struct rmpc_rmp_counters {
    uint64_t rmpupdate; /* executed, whatever the code; faulting ones not */
    uint64_t psmash;
    uint64_t rmpread;
};

/*
 * One RMP.  Set up with rmpc_rmp_init(); then the fields may be read.
 *   base, end  RMP_BASE and RMP_END: first and last byte of bookkeeping area and entries
 *   frames     frames 0 to frames - 1 are covered
 *   entries    host address of the first entry
 *   c_bit      memory-encryption bit, taken out of every address first; 0: none
 *   touched    optional: a bit for each 2 MiB region (512 entries), set by the first change to one of its
 *              entries, so that listing a large table need not read it all.  (frames + 511) / 512 bits in
 *              64-bit words, zeroed by the caller, who may set bits but clears none.
 */
struct rmpc_rmp {
    uint64_t base;
    uint64_t end;
    uint64_t frames;
    struct rmpc_rmp_entry *entries;
    uint64_t c_bit;
    uint64_t *touched;
    struct rmpc_hardware hardware;
    struct rmpc_inject inject;
    struct rmpc_rmp_counters counters;
    const struct rmpc_events *events;
};

/* The kernel's checks of a contiguous table: RMPC_OK or one of the RMPC_ERR_RMP_* refusals.
 *   max_pfn  one past the highest frame of usable memory */
enum rmpc_status rmpc_rmp_probe(uint64_t base, uint64_t end, uint64_t max_pfn);

/* Words that struct rmpc_rmp's touched needs for a table [base, end]. */
size_t rmpc_rmp_touched_words(uint64_t base, uint64_t end);

/* Use the table [base, end], which one range of mem must hold (RMPC_ERR_RANGE).  An entry that end cuts off is
 * not covered.  RMPC_ERR_ARGUMENT: no room for an entry, base not a multiple of 16, or a bad hardware profile.
 * The table's contents stay. */
enum rmpc_status rmpc_rmp_init(struct rmpc_rmp *rmp, const struct rmpc_mem *mem, uint64_t base, uint64_t end,
                               uint64_t c_bit, const struct rmpc_hardware *hardware, uint64_t *touched,
                               const struct rmpc_events *events);

/* Is the frame covered?  Only covered frames have an entry. */
static inline bool rmpc_rmp_covers(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    return pfn < rmp->frames;
}

/* Note that an entry of this covered frame's region has changed. */
static inline void rmpc_rmp_touch(struct rmpc_rmp *rmp, uint64_t pfn)
{
    if (rmp->touched)
        rmp->touched[pfn / RMPC_REGION_FRAMES / 64] |= UINT64_C(1) << (pfn / RMPC_REGION_FRAMES % 64);
}

/* Raw access as firmware has it, unchecked.  RMPC_ERR_ARGUMENT: frame not covered. */
enum rmpc_status rmpc_rmp_get(const struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry *out);
enum rmpc_status rmpc_rmp_set(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry entry);

/* The next frame at or after pfn whose entry is not zero; rmp->frames if there is none.  Reads only touched
 * regions when the table keeps track of them. */
uint64_t rmpc_rmp_next_used(const struct rmpc_rmp *rmp, uint64_t pfn);

/* Queue a run of codes.  RMPC_ERR_ARGUMENT: code above 255, count not 1 to 2^20; RMPC_ERR_FULL. */
enum rmpc_status rmpc_rmp_inject(struct rmpc_rmp *rmp, uint64_t code, uint64_t count);

#endif
