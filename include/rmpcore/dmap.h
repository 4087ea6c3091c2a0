/*
 * The Linux direct map: its page tables, how they are built at boot, and how an address is looked up
 * (rules: docs/direct-map.md, sections 2 and 3).
 *
 * The tables lie in simulated memory; this structure holds what the kernel keeps beside them.  One thread at
 * a time may change a direct map, as in the kernel.
 */
#ifndef RMPCORE_DMAP_H
#define RMPCORE_DMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "event.h"
#include "kernel.h"
#include "mem.h"
#include "pte.h"
#include "status.h"

RMPC_BEGIN_DECLS

#define RMPC_HIGH_MAP UINT64_C(0xffffffff80000000) /* virtual address of the window of the kernel image */
#define RMPC_HIGH_SIZE (UINT64_C(1) << 30)

/* e820 types that the rules tell apart */
enum rmpc_e820_type { RMPC_E820_USABLE = 1, RMPC_E820_ACPI = 3, RMPC_E820_KERNEL_RESERVED = 128 };

struct rmpc_e820 {
    uint64_t base;
    uint64_t size;
    uint32_t type;
};

/* Frames [start, end). */
struct rmpc_frames {
    uint64_t start;
    uint64_t end;
};

/* The kernel image, virtual addresses in its high mapping; text 0: no image. */
struct rmpc_image {
    uint64_t text;
    uint64_t etext;
    uint64_t start_rodata;
    uint64_t end_rodata;
    uint64_t brk_end;
    uint64_t phys_base; /* physical = virtual - RMPC_HIGH_MAP + phys_base */
};

/* What a direct map is set up with.  The caller's; rmpc_dmap_init() copies what stays in use. */
struct rmpc_dmap_config {
    int levels;              /* 4 or 5 */
    int large_level;         /* largest leaf at boot: 3 (1 GiB), 2 or 1 */
    uint64_t page_offset;    /* virtual address of physical 0; a multiple of 1 GiB */
    uint64_t supported_mask; /* entry bits that may be set; both masks have at least bits 7:0 and 51:12 */
    uint64_t default_mask;   /* entry bits of the boot-time mapping */
    uint64_t c_bit;          /* memory-encryption bit as a mask, one of bits 51:32, or 0 */
    uint64_t cache_modes[6]; /* PWT, PCD and PAT bits (small form) of WB, WC, UC-, UC, WT, WP */
    struct rmpc_image image;
    struct rmpc_kernel kernel;
};

struct rmpc_dmap_counters {
    uint64_t pages[4];  /* [1] 4K, [2] 2M, [3] 1G: the kernel's DirectMap counts; [0] unused */
    uint64_t splits[4];    /* [2], [3]: direct_map_level2_splits, direct_map_level3_splits */
    uint64_t collapses[4]; /* [2], [3]: direct_map_level2_collapses, direct_map_level3_collapses */
    uint64_t flush_all;
    uint64_t flush_pages; /* pages flushed one by one */
    uint64_t flush_cache; /* pages whose cache lines were flushed */
    uint64_t flush_cache_all;
    uint64_t table_pages; /* page-table pages in use, the root included */
};

/*
 * A direct map.  Read the fields as you like; change them only where it says so.
 *   mapped           mapped frame ranges, sorted and merged (kernel: pfn_mapped); room for mapped_room
 *   kernel_readonly  the kernel image is read-only by now; may be set
 *   page_total       4 KiB pages that counters.pages stand for: splits and collapses leave it as it is.  Set it
 *                    when you set counters.pages
 *   home             the range of mem that holds the root table and, as a rule, most others: looked at first
 */
struct rmpc_dmap {
    struct rmpc_mem *mem;
    struct rmpc_range home;
    struct rmpc_dmap_config config;
    uint64_t root;
    struct rmpc_frames *mapped;
    size_t mapped_count;
    size_t mapped_room;
    uint64_t max_pfn_mapped;
    bool kernel_readonly;
    struct rmpc_dmap_counters counters;
    uint64_t page_total;
    const struct rmpc_events *events;
};

/* Where a walk ended.  entry NULL: an empty entry above level 1, nothing is there. */
struct rmpc_walk {
    uint64_t *entry;
    int level;
    bool rw; /* RW at all levels above */
    bool nx; /* NX at some level above */
};

/* Memory at boot (docs/direct-map.md, section 2): extents as rmpc_extents_check() wants them, except that
 * reserved ones need not be whole pages; e820 rows in any order. */
struct rmpc_boot_memory {
    const struct rmpc_extent *memory;
    size_t memory_count;
    const struct rmpc_extent *reserved;
    size_t reserved_count;
    const struct rmpc_e820 *e820;
    size_t e820_count;
    uint64_t max_pfn; /* one past the highest usable frame */
};

/* The cache modes of a machine with PAT. */
#define RMPC_CACHE_MODES_PAT {0x00, 0x08, 0x10, 0x18, 0x98, 0x88}

/* Physical addresses that the direct map's part of the address space has room for: 2^46 with 4 levels, 2^52
 * with 5. */
static inline uint64_t rmpc_dmap_limit(const struct rmpc_dmap *dmap)
{
    return dmap->config.levels == 5 ? RMPC_PHYSICAL_LIMIT : UINT64_C(1) << 46;
}

/* Do these frames lie within rmpc_dmap_limit()?  What lies beyond is not modelled. */
static inline bool rmpc_dmap_has_room(const struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages)
{
    uint64_t limit = rmpc_dmap_limit(dmap) >> RMPC_PAGE_SHIFT;

    return pfn <= limit && pages <= limit - pfn;
}

/* Virtual address of a frame in the direct map. */
static inline uint64_t rmpc_dmap_address(const struct rmpc_dmap *dmap, uint64_t pfn)
{
    return dmap->config.page_offset + (pfn << RMPC_PAGE_SHIFT);
}

/* Set up an empty direct map without a root table.
 *   mapped, mapped_room  the caller's array for the list of mapped ranges
 * RMPC_ERR_ARGUMENT: impossible configuration.  RMPC_ERR_RANGE: see rmpc_mem_check(), or memory that reaches the
 * encryption bit. */
enum rmpc_status rmpc_dmap_init(struct rmpc_dmap *dmap, struct rmpc_mem *mem, const struct rmpc_dmap_config *config,
                                struct rmpc_frames *mapped, size_t mapped_room, const struct rmpc_events *events);

/* Build the tables as the kernel does at boot.  RMPC_ERR_NOMEM, RMPC_ERR_FULL (mapped), RMPC_ERR_RANGE (boot):
 * the direct map is unusable then and may be set up again. */
enum rmpc_status rmpc_dmap_boot(struct rmpc_dmap *dmap, const struct rmpc_boot_memory *boot);

/* lookup_address(): level 1 gives the slot even if it is zero. */
struct rmpc_walk rmpc_dmap_lookup(const struct rmpc_dmap *dmap, uint64_t va);

/* Does the list of mapped ranges hold this frame? */
bool rmpc_dmap_is_mapped(const struct rmpc_dmap *dmap, uint64_t pfn);

/* Add frames to the list of mapped ranges.  RMPC_ERR_FULL: no room, list unchanged. */
enum rmpc_status rmpc_dmap_add_mapped(struct rmpc_dmap *dmap, uint64_t start, uint64_t end);

/*
 * Rebuild a direct map entry by entry, from the top level down (a recording, a saved state).  The caller
 * sets max_pfn_mapped, counters and page_total.
 *   root   physical address of the root table; the page is cleared
 *   table  raw entry that points to a table; that page is cleared
 *   leaf   any other non-zero entry
 * RMPC_ERR_RANGE: page not backed.  RMPC_ERR_STATE: no table above, slot in use, P or PSE wrong for the
 * kind of entry.  RMPC_ERR_ARGUMENT: level, or va not the first byte of a slot.
 */
enum rmpc_status rmpc_dmap_put_root(struct rmpc_dmap *dmap, uint64_t root);
enum rmpc_status rmpc_dmap_put_table(struct rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw);
enum rmpc_status rmpc_dmap_put_leaf(struct rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw);

/* Make the tables above the level-2 entries of the high mapping, as far as they are missing. */
enum rmpc_status rmpc_dmap_put_high_path(struct rmpc_dmap *dmap);

/* One non-zero entry of the tables, as rmpc_dmap_list() reports it. */
struct rmpc_dmap_entry {
    uint64_t va; /* of the first byte of its slot */
    uint64_t raw;
    int level;
    bool table; /* points to a table */
};

/* Report every non-zero entry in [va, va + size) of level top_level and below, parents first.  Slots that only
 * overlap the range are reported too.  report returns false to stop. */
void rmpc_dmap_list(const struct rmpc_dmap *dmap, uint64_t va, uint64_t size, int top_level,
                    bool (*report)(void *user, const struct rmpc_dmap_entry *entry), void *user);

/* What a direct map looks like now; the high mapping of the image does not count. */
struct rmpc_census {
    uint64_t leaves[4]; /* [1] 4K, [2] 2M, [3] 1G, present; [0] unused */
    uint64_t missing;   /* 4 KiB frames under leaves that are not present */
};

/* Count it by walking the tables. */
void rmpc_dmap_census(const struct rmpc_dmap *dmap, struct rmpc_census *census);

/* 4 KiB pages that these counts of leaves stand for (modulo 2^64, as the kernel counts). */
uint64_t rmpc_dmap_page_total(const struct rmpc_dmap_counters *counters);

/* What has to hold for a whole direct map at any time. */
enum rmpc_invariant {
    RMPC_INVARIANTS_HOLD = 0,
    RMPC_BROKEN_ROOT,         /* the root table is a page of memory */
    RMPC_BROKEN_TABLE_PAGE,   /* so is every other table */
    RMPC_BROKEN_TABLE_SHARED, /* no two entries point to the same table */
    RMPC_BROKEN_IDENTITY,     /* a leaf of the direct map maps the frame at its own offset, so none is mapped twice */
    RMPC_BROKEN_COVERAGE,     /* mapped and missing bytes add up to the direct map's span */
    RMPC_BROKEN_TABLE_COUNT,  /* counters.table_pages counts the tables there are */
    RMPC_BROKEN_PAGE_COUNTS,  /* counters.pages stand for page_total pages */
    RMPC_BROKEN_MAPPED,       /* mapped ranges are sorted, apart, and below max_pfn_mapped */
    RMPC_INVARIANT_END
};

/* Check them all; the first that is broken.
 *   scratch, room  space for counters.table_pages frame numbers (more is of no use)
 *   where          virtual address of the entry at fault; 0 when there is none */
enum rmpc_invariant rmpc_dmap_validate(const struct rmpc_dmap *dmap, uint64_t *scratch, size_t room, uint64_t *where);

/* The invariant's name; never NULL. */
const char *rmpc_invariant_name(enum rmpc_invariant invariant);

RMPC_END_DECLS

#endif
