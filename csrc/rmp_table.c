/* The RMP: profile, probing, placement in one piece or in segments, raw access (rmp sections 1.6 and 1.7). */
#include "rmpcore/rmp_table.h"

#include <string.h>

#include "rmp_internal.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "simulated memory is little-endian, and so must be the host"
#endif

#define GIB_SHIFT 30
#define MIB_SHIFT 20
#define RST_ALIGN (UINT64_C(1) << 20) /* of RMP_BASE and of each segment's table */
#define WHOLE_SHIFT 40                /* a contiguous table is a segment that holds all frames */

enum rmpc_status rmpc_hardware_init(struct rmpc_hardware *hardware, enum rmpc_part part)
{
    if ((unsigned)part >= RMPC_PART_END)
        return RMPC_ERR_ARGUMENT;
    *hardware = (struct rmpc_hardware){
        .gpa_bits = part == RMPC_PART_MILAN ? 48 : 51,
        .vmpl0_all = part == RMPC_PART_MILAN ? 0x0f : 0x1f,
        .rmpread = part == RMPC_PART_TURIN,
        .overlap_inner = 4,
        .psmash_unassigned = 7,
        .psmash_immutable = 7,
        .keep_same = 1,
        .reserved_input = 0,
        .asid_limit = (uint32_t)RMPC_RMP_ASID_MAX,
        .lock_follows_immutable = 1,
        .subpage_count = 1,
        .rmpquery = part != RMPC_PART_MILAN,
        .inuse_first = 0,
        .pvalidate_vmpl = 0,
        .rescind_resets = 0,
        .rmpquery_vmpl = 2,
        .bookkeeping = 512,
        .segmented = part == RMPC_PART_TURIN,
        .segment_min = 36,
        .segment_max = 40,
        .segment_cached = RMPC_RST_ENTRIES,
        .segment_limit = 0,
        .segment_unit = 0,
        .vmpls = RMPC_VMPLS,
        .vmpl_sss = part != RMPC_PART_MILAN,
        .hv_in_use_wr = part == RMPC_PART_TURIN,
    };
    return RMPC_OK;
}

static bool within(uint32_t value, uint32_t low, uint32_t high)
{
    return value >= low && value <= high;
}

enum rmpc_status rmpc_hardware_check(const struct rmpc_hardware *h)
{
    const uint32_t yes_no[] = {h->rmpread,       h->keep_same,      h->reserved_input, h->lock_follows_immutable,
                               h->subpage_count, h->rmpquery,       h->inuse_first,    h->rescind_resets,
                               h->segmented,     h->segment_limit,  h->vmpl_sss,       h->hv_in_use_wr};

    for (size_t i = 0; i < sizeof(yes_no) / sizeof(*yes_no); i++)
        if (yes_no[i] > 1)
            return RMPC_ERR_ARGUMENT;
    if (!within(h->gpa_bits, 13, 51) || h->vmpl0_all > 0xff || h->asid_limit > RMPC_RMP_ASID_MAX)
        return RMPC_ERR_ARGUMENT;
    if (!within(h->overlap_inner, 1, 255) || !within(h->psmash_unassigned, 1, 255) ||
        !within(h->psmash_immutable, 1, 255) || h->pvalidate_vmpl > 255 || h->rmpquery_vmpl > 255)
        return RMPC_ERR_ARGUMENT;
    if (h->bookkeeping > 1 && h->bookkeeping != RMPC_REGION_FRAMES)
        return RMPC_ERR_ARGUMENT;
    if ((h->segment_unit != 0 && h->segment_unit != MIB_SHIFT) || !within(h->segment_cached, 1, RMPC_RST_ENTRIES))
        return RMPC_ERR_ARGUMENT;
    if (!within(h->segment_min, GIB_SHIFT - h->segment_unit, 51) || !within(h->segment_max, h->segment_min, 51))
        return RMPC_ERR_ARGUMENT;
    return within(h->vmpls, 1, RMPC_VMPLS) ? RMPC_OK : RMPC_ERR_ARGUMENT;
}

static unsigned cfg_shift(const struct rmpc_rmp_msrs *msrs)
{
    return (unsigned)((msrs->cfg & RMPC_RMP_CFG_SHIFT) >> 8);
}

/* Entries of the segment table that count. */
static unsigned rst_limit(const struct rmpc_hardware *hardware)
{
    return hardware->segment_limit ? hardware->segment_cached : RMPC_RST_ENTRIES;
}

/* The segment table; NULL: not backed. */
static const uint8_t *segment_table(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem)
{
    return rmpc_mem_at(mem, msrs->base + RMPC_RMP_BOOKKEEPING, RMPC_RST_ENTRIES * sizeof(uint64_t));
}

/* An entry of it, which may lie anywhere: whether the base is aligned is still to be checked. */
static uint64_t rst_entry(const uint8_t *rst, size_t i)
{
    uint64_t raw;

    memcpy(&raw, rst + i * sizeof(raw), sizeof(raw));
    return raw;
}

/* Bytes of addresses that a segment covers: not more than it is large. */
static uint64_t covered_bytes(uint64_t raw, unsigned shift)
{
    uint64_t bytes = (raw & RMPC_RST_COVERED) << GIB_SHIFT;

    return bytes < UINT64_C(1) << shift ? bytes : UINT64_C(1) << shift;
}

static enum rmpc_status probe_contiguous(const struct rmpc_rmp_msrs *msrs, const struct rmpc_kernel *kernel,
                                         uint64_t max_pfn)
{
    uint64_t round_up = kernel->rmp_end_blocks ? RMPC_PAGE_SIZE - 1 : 0;
    uint64_t frames, size;

    if (!(msrs->base & RMPC_RMP_MSR_ADDRESS) || !(msrs->end & RMPC_RMP_MSR_ADDRESS))
        return RMPC_ERR_RMP_NONE;
    if (msrs->base > msrs->end)
        return RMPC_ERR_RMP_ORDER;
    /* an entry for each frame below the top of memory, and for the table's own */
    frames = msrs->end / RMPC_PAGE_SIZE + (msrs->end % RMPC_PAGE_SIZE + round_up) / RMPC_PAGE_SIZE;
    if (frames < max_pfn)
        frames = max_pfn;
    size = msrs->end - msrs->base + 1;
    if (frames > (UINT64_MAX - RMPC_RMP_BOOKKEEPING) / RMPC_RMP_ENTRY_SIZE ||
        size < frames * RMPC_RMP_ENTRY_SIZE + RMPC_RMP_BOOKKEEPING)
        return RMPC_ERR_RMP_SMALL;
    return RMPC_OK;
}

static enum rmpc_status probe_segmented(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                        const struct rmpc_hardware *hardware, uint64_t max_pfn)
{
    const uint8_t *rst = segment_table(msrs, mem);
    unsigned shift = cfg_shift(msrs);
    uint64_t end = 0;

    if (!(msrs->base & RMPC_RMP_MSR_ADDRESS))
        return RMPC_ERR_RMP_NONE;
    if (shift < hardware->segment_min || shift > hardware->segment_max)
        return RMPC_ERR_RMP_SEGMENT;
    if (!rst)
        return RMPC_ERR_RANGE;
    for (unsigned i = 0; i < rst_limit(hardware); i++) {
        uint64_t start = (uint64_t)i << shift;

        /* the kernel goes by the last segment below the top of memory; holes before it escape it */
        if (i <= (RMPC_PHYSICAL_LIMIT - 1) >> shift && (rst_entry(rst, i) & RMPC_RST_COVERED) &&
            start < max_pfn << RMPC_PAGE_SHIFT)
            end = start + covered_bytes(rst_entry(rst, i), shift);
    }
    return end < max_pfn << RMPC_PAGE_SHIFT ? RMPC_ERR_RMP_COVER : RMPC_OK;
}

enum rmpc_status rmpc_rmp_probe(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                const struct rmpc_hardware *hardware, const struct rmpc_kernel *kernel,
                                uint64_t max_pfn)
{
    if (rmpc_hardware_check(hardware) != RMPC_OK)
        return RMPC_ERR_ARGUMENT;
    if (!(msrs->cfg & RMPC_RMP_CFG_SEGMENTED))
        return probe_contiguous(msrs, kernel, max_pfn);
    /* who does not know of segments looks at RMP_END, which is 0 */
    return kernel->segmented_rmp ? probe_segmented(msrs, mem, hardware, max_pfn) : RMPC_ERR_RMP_NONE;
}

static uint64_t words_for(uint64_t frames)
{
    return (frames + RMPC_REGION_FRAMES - 1) / RMPC_REGION_FRAMES;
}

/* What hardware takes when RMP_CFG is written, and when SNP is enabled (section 1.7). */
static enum rmpc_status check_segmented(const struct rmpc_rmp_msrs *msrs, const uint8_t *rst,
                                        const struct rmpc_hardware *hardware)
{
    unsigned shift = cfg_shift(msrs);

    if (!hardware->segmented)
        return RMPC_ERR_RMP_NONE;
    if ((msrs->cfg & ~(RMPC_RMP_CFG_SEGMENTED | RMPC_RMP_CFG_SHIFT)) ||
        shift < hardware->segment_min + hardware->segment_unit ||
        shift > hardware->segment_max + hardware->segment_unit || msrs->base % RST_ALIGN)
        return RMPC_ERR_RMP_CONFIG;
    if (!rst)
        return RMPC_ERR_RANGE;
    for (unsigned i = 0; hardware->segment_limit && i < rst_limit(hardware); i++)
        if (rst_entry(rst, i) & RMPC_RST_RESERVED)
            return RMPC_ERR_RMP_CONFIG;
    return RMPC_OK;
}

/* Segment i of a segmented table, as its entry says; false: its table is not backed. */
static bool read_segment(uint64_t raw, unsigned shift, const struct rmpc_mem *mem, struct rmpc_rmp_segment *segment)
{
    uint64_t bytes = covered_bytes(raw, shift);

    memset(segment, 0, sizeof(*segment));
    if (!bytes)
        return true;
    segment->pa = raw & RMPC_RST_BASE;
    segment->reserved = raw & RMPC_RST_RESERVED;
    if (!segment->reserved)
        segment->frames = bytes >> RMPC_PAGE_SHIFT;
    segment->bytes = (bytes >> RMPC_PAGE_SHIFT) * RMPC_RMP_ENTRY_SIZE;
    segment->entries = rmpc_mem_at(mem, segment->pa, segment->bytes);
    return segment->entries;
}

/* Segments that lie below the end of physical memory and count. */
static size_t segment_count(const struct rmpc_rmp_msrs *msrs, const struct rmpc_hardware *hardware)
{
    size_t possible = (size_t)(RMPC_PHYSICAL_LIMIT >> cfg_shift(msrs));

    return possible < rst_limit(hardware) ? possible : rst_limit(hardware);
}

static enum rmpc_status read_contiguous(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                        struct rmpc_rmp_segment *segment)
{
    uint64_t size = msrs->end - msrs->base + 1;
    uint8_t *host;

    memset(segment, 0, sizeof(*segment));
    if (msrs->end < msrs->base || size < RMPC_RMP_BOOKKEEPING + RMPC_RMP_ENTRY_SIZE ||
        msrs->base % RMPC_RMP_ENTRY_SIZE || msrs->end >= RMPC_PHYSICAL_LIMIT)
        return RMPC_ERR_ARGUMENT;
    host = rmpc_mem_at(mem, msrs->base, size);
    if (!host)
        return RMPC_ERR_RANGE;
    segment->pa = msrs->base + RMPC_RMP_BOOKKEEPING;
    segment->frames = (size - RMPC_RMP_BOOKKEEPING) / RMPC_RMP_ENTRY_SIZE;
    if (segment->frames > RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT)
        segment->frames = RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT;
    segment->bytes = size - RMPC_RMP_BOOKKEEPING;
    segment->entries = (struct rmpc_rmp_entry *)(void *)(host + RMPC_RMP_BOOKKEEPING);
    return RMPC_OK;
}

/* Go through the table's segments; into segments unless that is NULL. */
static enum rmpc_status read_segments(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                      const struct rmpc_hardware *hardware, struct rmpc_rmp_segment *segments,
                                      struct rmpc_rmp_room *room)
{
    struct rmpc_rmp_segment segment;
    enum rmpc_status status;
    const uint8_t *rst;

    if (rmpc_hardware_check(hardware) != RMPC_OK)
        return RMPC_ERR_ARGUMENT;
    if (!(msrs->cfg & RMPC_RMP_CFG_SEGMENTED)) {
        status = read_contiguous(msrs, mem, &segment);
        *room = (struct rmpc_rmp_room){1, (size_t)words_for(segment.frames)};
        if (status == RMPC_OK && segments)
            *segments = segment;
        return status;
    }
    rst = segment_table(msrs, mem);
    status = check_segmented(msrs, rst, hardware);
    if (status != RMPC_OK)
        return status;
    if (!rmpc_mem_at(mem, msrs->base, RMPC_RMP_BOOKKEEPING))
        return RMPC_ERR_RANGE;
    *room = (struct rmpc_rmp_room){segment_count(msrs, hardware), 0};
    for (size_t i = 0; i < room->segments; i++) {
        if (!read_segment(rst_entry(rst, i), cfg_shift(msrs), mem, &segment))
            return RMPC_ERR_RANGE;
        room->words += (size_t)words_for(segment.frames);
        if (segments)
            segments[i] = segment;
    }
    return room->words ? RMPC_OK : RMPC_ERR_ARGUMENT;
}

enum rmpc_status rmpc_rmp_measure(const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                                  const struct rmpc_hardware *hardware, struct rmpc_rmp_room *room)
{
    return read_segments(msrs, mem, hardware, NULL, room);
}

enum rmpc_status rmpc_rmp_init(struct rmpc_rmp *rmp, const struct rmpc_rmp_msrs *msrs, const struct rmpc_mem *mem,
                               const struct rmpc_hardware *hardware, uint64_t c_bit,
                               struct rmpc_rmp_segment *segments, uint32_t *words)
{
    struct rmpc_rmp_room room;
    enum rmpc_status status = read_segments(msrs, mem, hardware, segments, &room);

    if (status != RMPC_OK)
        return status;
    memset(rmp, 0, sizeof(*rmp));
    rmp->segments = segments;
    rmp->count = room.segments;
    rmp->shift = msrs->cfg & RMPC_RMP_CFG_SEGMENTED ? cfg_shift(msrs) - RMPC_PAGE_SHIFT : WHOLE_SHIFT;
    rmp->msrs = *msrs;
    rmp->bookkeeping = rmpc_mem_at(mem, msrs->base, RMPC_RMP_BOOKKEEPING);
    rmp->c_bit = c_bit;
    rmp->hardware = *hardware;
    for (size_t i = 0; i < room.segments; i++) {
        if (!segments[i].frames)
            continue;
        segments[i].regions = words;
        if (words)
            words += words_for(segments[i].frames);
        rmp->frames = ((uint64_t)i << rmp->shift) + segments[i].frames;
    }
    rmpc_set_quick(rmp);
    return RMPC_OK;
}

void rmpc_set_quick(struct rmpc_rmp *rmp)
{
    const struct rmpc_rmp_segment *segment = &rmp->segments[0];
    bool in_use = rmp->in_use_count && !rmp->hardware.hv_in_use_wr;
    bool counted = rmp->hardware.subpage_count && segment->regions && !rmp->raw;

    rmp->entries = segment->entries;
    rmp->quick[0] = in_use ? 0 : segment->frames;
    rmp->quick[1] = counted ? rmp->quick[0] : 0;
}

/* From now on some region's subpage count may be wrong. */
static void distrust(struct rmpc_rmp *rmp)
{
    rmp->raw = true;
    rmpc_set_quick(rmp);
}

static bool overlaps(uint64_t pfn, uint64_t pa, uint64_t size)
{
    uint64_t page = pfn << RMPC_PAGE_SHIFT;

    return page < pa + size && pa < page + RMPC_PAGE_SIZE;
}

bool rmpc_rmp_is_own(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    if (pfn >= RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT)
        return false;
    if (!(rmp->msrs.cfg & RMPC_RMP_CFG_SEGMENTED))
        return overlaps(pfn, rmp->msrs.base, rmp->msrs.end - rmp->msrs.base + 1);
    if (overlaps(pfn, rmp->msrs.base, RMPC_RMP_BOOKKEEPING + RMPC_PAGE_SIZE))
        return true;
    for (size_t i = 0; i < rmp->count; i++)
        if (overlaps(pfn, rmp->segments[i].pa, rmp->segments[i].bytes))
            return true;
    return false;
}

enum rmpc_status rmpc_rmp_get(const struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry *out)
{
    struct rmpc_rmp_entry head;
    struct place place;

    if (!find(rmp, pfn, &place))
        return RMPC_ERR_ARGUMENT;
    load_both(&place, out, &head);
    return RMPC_OK;
}

enum rmpc_status rmpc_rmp_set(struct rmpc_rmp *rmp, uint64_t pfn, struct rmpc_rmp_entry entry)
{
    struct place place;

    if (!find(rmp, pfn, &place))
        return RMPC_ERR_ARGUMENT;
    own(place.word, WORD_BUSY);
    store_entry(place.entry, entry);
    disown(place.word, true, NOT_TRUSTED);
    distrust(rmp);
    return RMPC_OK;
}

void rmpc_rmp_touch(struct rmpc_rmp *rmp, uint64_t pfn)
{
    struct place place;

    if (!find(rmp, pfn, &place))
        return;
    own(place.word, WORD_BUSY);
    disown(place.word, true, NOT_TRUSTED);
    distrust(rmp);
}

/* Is a region's subpage count, stored in its first entry, what its entries say (section 1.2)?  A 2M entry has none, and
 * the others below it are assigned. */
static bool is_counted(const struct place *place)
{
    const uint64_t large = RMPC_RMP_ASSIGNED | RMPC_RMP_SIZE_2M;
    const uint64_t stored = rmpc_rmp_subpages(*place->head);
    const uint64_t count = count_others(place);

    if ((place->head->lo & large) == large)
        return !stored && count == RMPC_REGION_FRAMES - 1;
    return stored == count;
}

void rmpc_rmp_recount(struct rmpc_rmp *rmp)
{
    if (!rmp->hardware.subpage_count)
        return;
    rmp->raw = false;
    for (uint64_t i = 0; i < rmp->count; i++) {
        const struct rmpc_rmp_segment *segment = &rmp->segments[i];

        for (uint64_t start = 0; segment->regions && start < segment->frames; start += RMPC_REGION_FRAMES) {
            struct rmpc_rmp_entry *head = &segment->entries[start];
            uint32_t *word = &segment->regions[start / RMPC_REGION_FRAMES];
            const struct place place = {head, head, word, segment->frames - start};

            if (!(*word & WORD_RAW))
                continue;
            if (is_counted(&place))
                *word &= ~(uint32_t)WORD_RAW;
            else
                rmp->raw = true;
        }
    }
    rmpc_set_quick(rmp);
}

/* The first entry of [offset, segment->frames) that is not zero; segment->frames if there is none. */
static uint64_t next_in_segment(const struct rmpc_rmp_segment *segment, uint64_t offset)
{
    while (offset < segment->frames) {
        uint64_t region = offset / RMPC_REGION_FRAMES;
        uint64_t end = (region + 1) * RMPC_REGION_FRAMES;

        if (end > segment->frames)
            end = segment->frames;
        if (segment->regions && !segment->regions[region])
            offset = end;
        for (; offset < end; offset++)
            if (segment->entries[offset].lo | segment->entries[offset].hi)
                return offset;
    }
    return segment->frames;
}

uint64_t rmpc_rmp_next_used(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    for (uint64_t i = pfn >> rmp->shift; i < rmp->count; i++) {
        uint64_t first = i << rmp->shift;
        uint64_t offset = next_in_segment(&rmp->segments[i], pfn > first ? pfn - first : 0);

        if (offset < rmp->segments[i].frames)
            return first + offset;
    }
    return rmp->frames;
}

bool rmpc_in_use(const struct rmpc_rmp *rmp, uint64_t pfn, uint64_t count)
{
    for (size_t i = 0; i < rmp->in_use_count; i++) {
        const struct rmpc_in_use *pages = &rmp->in_use[i];

        /* a VMCB is always there; 0 stands for no VMSA and no AVIC page */
        if (pages->vmcb - pfn < count || (pages->vmsa && pages->vmsa - pfn < count) ||
            (pages->avic && pages->avic - pfn < count))
            return true;
    }
    return false;
}
