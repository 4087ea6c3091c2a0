/* The contiguous RMP: profile, probing, placement, raw access, injection (rmp section 1.6). */
#include "rmpcore/rmp_table.h"

#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "simulated memory is little-endian, and so must be the host"
#endif

enum rmpc_status rmpc_hardware_init(struct rmpc_hardware *hardware, enum rmpc_part part)
{
    if ((unsigned)part >= RMPC_PART_END)
        return RMPC_ERR_ARGUMENT;
    *hardware = (struct rmpc_hardware){
        .gpa_bits = part == RMPC_PART_MILAN ? 48 : 51,
        .vmpl0_all = part == RMPC_PART_MILAN ? 0x0f : 0x1f,
        .rmpread = 0,
        .overlap_inner = 4,
        .psmash_unassigned = 7,
        .psmash_immutable = 7,
        .keep_same = 1,
        .reserved_input = 0,
        .asid_limit = (uint32_t)RMPC_RMP_ASID_MAX,
        .lock_follows_immutable = 1,
        .subpage_count = 1,
    };
    return RMPC_OK;
}

static bool is_code(uint32_t value)
{
    return value >= 1 && value <= 255;
}

enum rmpc_status rmpc_hardware_check(const struct rmpc_hardware *h)
{
    if (h->gpa_bits < 13 || h->gpa_bits > 51 || h->vmpl0_all > 0xff || h->asid_limit > RMPC_RMP_ASID_MAX)
        return RMPC_ERR_ARGUMENT;
    if (!is_code(h->overlap_inner) || !is_code(h->psmash_unassigned) || !is_code(h->psmash_immutable))
        return RMPC_ERR_ARGUMENT;
    if (h->rmpread > 1 || h->keep_same > 1 || h->reserved_input > 1 || h->lock_follows_immutable > 1 ||
        h->subpage_count > 1)
        return RMPC_ERR_ARGUMENT;
    return RMPC_OK;
}

enum rmpc_status rmpc_rmp_probe(uint64_t base, uint64_t end, uint64_t max_pfn)
{
    uint64_t frames = end >> RMPC_PAGE_SHIFT;
    uint64_t size;

    if (!(base & RMPC_RMP_MSR_ADDRESS) || !(end & RMPC_RMP_MSR_ADDRESS))
        return RMPC_ERR_RMP_NONE;
    if (base > end)
        return RMPC_ERR_RMP_ORDER;
    if (frames < max_pfn)
        frames = max_pfn;
    size = end - base + 1;
    /* the kernel wants an entry for each frame below the top, its own last frame included */
    if (frames > (UINT64_MAX - RMPC_RMP_BOOKKEEPING) / RMPC_RMP_ENTRY_SIZE ||
        size < frames * RMPC_RMP_ENTRY_SIZE + RMPC_RMP_BOOKKEEPING)
        return RMPC_ERR_RMP_SMALL;
    return RMPC_OK;
}

static uint64_t table_frames(uint64_t base, uint64_t end)
{
    if (end < base || end - base < RMPC_RMP_BOOKKEEPING)
        return 0;
    return (end - base + 1 - RMPC_RMP_BOOKKEEPING) / RMPC_RMP_ENTRY_SIZE;
}

size_t rmpc_rmp_touched_words(uint64_t base, uint64_t end)
{
    uint64_t regions = (table_frames(base, end) + RMPC_REGION_FRAMES - 1) / RMPC_REGION_FRAMES;

    return (size_t)((regions + 63) / 64);
}

enum rmpc_status rmpc_rmp_init(struct rmpc_rmp *rmp, const struct rmpc_mem *mem, uint64_t base, uint64_t end,
                               uint64_t c_bit, const struct rmpc_hardware *hardware, uint64_t *touched,
                               const struct rmpc_events *events)
{
    uint64_t frames = table_frames(base, end);
    uint8_t *host;

    if (!frames || base % RMPC_RMP_ENTRY_SIZE || end >= RMPC_PHYSICAL_LIMIT ||
        rmpc_hardware_check(hardware) != RMPC_OK)
        return RMPC_ERR_ARGUMENT;
    host = rmpc_mem_at(mem, base, end - base + 1);
    if (!host)
        return RMPC_ERR_RANGE;
    memset(rmp, 0, sizeof(*rmp));
    rmp->base = base;
    rmp->end = end;
    rmp->frames = frames;
    rmp->entries = (struct rmpc_rmp_entry *)(void *)(host + RMPC_RMP_BOOKKEEPING);
    rmp->c_bit = c_bit;
    rmp->touched = touched;
    rmp->hardware = *hardware;
    rmp->events = events;
    return RMPC_OK;
}

enum rmpc_status rmpc_rmp_get(const struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry *out)
{
    if (!rmpc_rmp_covers(rmp, pfn))
        return RMPC_ERR_ARGUMENT;
    *out = rmp->entries[pfn];
    return RMPC_OK;
}

enum rmpc_status rmpc_rmp_set(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry entry)
{
    if (!rmpc_rmp_covers(rmp, pfn))
        return RMPC_ERR_ARGUMENT;
    rmp->entries[pfn] = entry;
    rmpc_rmp_touch(rmp, pfn);
    return RMPC_OK;
}

/* The next region at or after this one that may hold a non-zero entry. */
static uint64_t next_region(const struct rmpc_rmp *rmp, uint64_t region, uint64_t regions)
{
    if (!rmp->touched)
        return region;
    while (region < regions) {
        uint64_t word = rmp->touched[region / 64] >> (region % 64);
        if (word & 1)
            return region;
        region = word ? region + 1 : (region / 64 + 1) * 64;
    }
    return regions;
}

uint64_t rmpc_rmp_next_used(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    uint64_t regions = (rmp->frames + RMPC_REGION_FRAMES - 1) / RMPC_REGION_FRAMES;

    while (pfn < rmp->frames) {
        uint64_t region = next_region(rmp, pfn / RMPC_REGION_FRAMES, regions);
        uint64_t end = (region + 1) * RMPC_REGION_FRAMES;

        if (pfn < region * RMPC_REGION_FRAMES)
            pfn = region * RMPC_REGION_FRAMES;
        if (end > rmp->frames)
            end = rmp->frames;
        for (; pfn < end; pfn++)
            if (rmp->entries[pfn].lo | rmp->entries[pfn].hi)
                return pfn;
    }
    return rmp->frames;
}

enum rmpc_status rmpc_rmp_inject(struct rmpc_rmp *rmp, uint64_t code, uint64_t count)
{
    if (code > 255 || count < 1 || count > RMPC_INJECT_MAX_COUNT)
        return RMPC_ERR_ARGUMENT;
    if (rmp->inject.count == RMPC_INJECT_RUNS)
        return RMPC_ERR_FULL;
    rmp->inject.runs[rmp->inject.count].code = (uint32_t)code;
    rmp->inject.runs[rmp->inject.count].count = count;
    rmp->inject.count++;
    return RMPC_OK;
}
