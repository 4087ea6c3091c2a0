/* Page states and the firmware's commands (rmp sections 4.1 and 4.2). */
#include "rmpcore/firmware.h"

#include <string.h>

#include "rmp_internal.h"

/* The gpa field of entries that are the firmware's (section 1.3). */
#define TAG (UINT64_C(7) << 48)
#define TAG_METADATA (UINT64_C(1) << 48)
#define TAG_IOMMU (UINT64_C(2) << 48)
#define IOMMU_GPA (TAG_IOMMU | RMPC_PAGE_SIZE)

#define FIRMWARE_ENTRY (RMPC_RMP_ASSIGNED | RMPC_RMP_IMMUTABLE | RMPC_RMP_LOCK)
#define FIXED (RMPC_RMP_IMMUTABLE | RMPC_RMP_LOCK)
#define FRAMES (RMPC_PHYSICAL_LIMIT >> RMPC_PAGE_SHIFT)
#define MOST_PAGES (UINT64_C(1) << 20)
#define REGION_BYTES (RMPC_REGION_FRAMES * RMPC_PAGE_SIZE)
#define RECORD_SIZE UINT64_C(64)
#define LAUNCH_RESERVED 0xe0

enum { TYPE_FIRST = 1, TYPE_VMSA = 2, TYPE_SECRETS = 5, TYPE_CPUID = 6, TYPE_LAST = 6 };

/* Ranges that are never the hypervisor's to give away, whatever the memory map says (section 4.2, SNP_INIT). */
static const struct rmpc_extent fixed[] = {{0xa0000, 0x20000}, {0xfd00000000, UINT64_C(1) << 32}};

enum rmpc_page_state rmpc_page_state_of(struct rmpc_rmp_entry entry)
{
    const bool assigned = entry.lo & RMPC_RMP_ASSIGNED;
    const bool validated = entry.lo & RMPC_RMP_VALIDATED;
    const bool immutable = entry.lo & RMPC_RMP_IMMUTABLE;
    const bool vmsa = entry.lo & RMPC_RMP_VMSA;
    const uint64_t gpa = entry.lo & RMPC_RMP_GPA;

    if (rmpc_rmp_asid(entry)) {
        if (!assigned)
            return RMPC_PAGE_INVALID;
        if (immutable)
            return validated ? RMPC_PAGE_PRE_SWAP : RMPC_PAGE_PRE_GUEST;
        return validated ? RMPC_PAGE_GUEST_VALID : RMPC_PAGE_GUEST_INVALID;
    }
    if (validated)
        return RMPC_PAGE_INVALID;
    if (!assigned)
        return immutable ? RMPC_PAGE_HV_FIXED : RMPC_PAGE_HYPERVISOR;
    if (!immutable)
        return entry.lo & RMPC_RMP_LOCK ? RMPC_PAGE_INVALID : RMPC_PAGE_RECLAIM;
    if (!gpa)
        return vmsa ? RMPC_PAGE_CONTEXT : RMPC_PAGE_FIRMWARE;
    if ((gpa & TAG) == TAG_METADATA && (gpa & ~TAG))
        return RMPC_PAGE_METADATA;
    return gpa == IOMMU_GPA && !vmsa ? RMPC_PAGE_FIRMWARE_IOMMU : RMPC_PAGE_INVALID;
}

/* ---- the firmware's lists ---- */

/* The first context of this frame or a later one, as an index. */
static size_t find_context(const struct rmpc_firmware *firmware, uint64_t pfn)
{
    size_t low = 0;
    size_t high = firmware->context_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (firmware->contexts[middle].pfn < pfn)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The first record at this address or a later one, as an index. */
static size_t find_record(const struct rmpc_firmware *firmware, uint64_t address)
{
    size_t low = 0;
    size_t high = firmware->record_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (firmware->records[middle].address < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct rmpc_context *context_of(struct rmpc_firmware *firmware, uint64_t pfn)
{
    const size_t i = find_context(firmware, pfn);

    return i < firmware->context_count && firmware->contexts[i].pfn == pfn ? &firmware->contexts[i] : NULL;
}

static struct rmpc_record *record_at(struct rmpc_firmware *firmware, uint64_t address)
{
    const size_t i = find_record(firmware, address);

    return i < firmware->record_count && firmware->records[i].address == address ? &firmware->records[i] : NULL;
}

/* The first record in a page; NULL: there is none. */
static struct rmpc_record *record_in(struct rmpc_firmware *firmware, uint64_t pfn)
{
    const size_t i = find_record(firmware, pfn << RMPC_PAGE_SHIFT);

    return i < firmware->record_count && firmware->records[i].address >> RMPC_PAGE_SHIFT == pfn ? &firmware->records[i]
                                                                                               : NULL;
}

static void put_context(struct rmpc_firmware *firmware, struct rmpc_context context)
{
    const size_t i = find_context(firmware, context.pfn);
    struct rmpc_context *place = &firmware->contexts[i];

    memmove(place + 1, place, (firmware->context_count - i) * sizeof(*place));
    *place = context;
    firmware->context_count++;
}

static void drop_context(struct rmpc_firmware *firmware, struct rmpc_context *context)
{
    firmware->context_count--;
    memmove(context, context + 1,
            (size_t)(&firmware->contexts[firmware->context_count] - context) * sizeof(*context));
}

static void put_record(struct rmpc_firmware *firmware, struct rmpc_record record)
{
    const size_t i = find_record(firmware, record.address);
    struct rmpc_record *place = &firmware->records[i];

    memmove(place + 1, place, (firmware->record_count - i) * sizeof(*place));
    *place = record;
    firmware->record_count++;
}

static void drop_record(struct rmpc_firmware *firmware, struct rmpc_record *record)
{
    firmware->record_count--;
    memmove(record, record + 1, (size_t)(&firmware->records[firmware->record_count] - record) * sizeof(*record));
}

/* Drop the records of a guest (context), or those in a page (page); UINT64_MAX: of none. */
static void drop_records(struct rmpc_firmware *firmware, uint64_t context, uint64_t page)
{
    size_t kept = 0;

    for (size_t i = 0; i < firmware->record_count; i++)
        if (firmware->records[i].context != context && firmware->records[i].address >> RMPC_PAGE_SHIFT != page)
            firmware->records[kept++] = firmware->records[i];
    firmware->record_count = kept;
}

enum rmpc_status rmpc_firmware_add_context(struct rmpc_firmware *firmware, struct rmpc_context context)
{
    const size_t count = firmware->context_count;

    if (count == RMPC_CONTEXTS)
        return RMPC_ERR_FULL;
    if (context.pfn >= FRAMES || context.asid > RMPC_RMP_ASID_MAX ||
        (count && firmware->contexts[count - 1].pfn >= context.pfn))
        return RMPC_ERR_ARGUMENT;
    put_context(firmware, context);
    return RMPC_OK;
}

enum rmpc_status rmpc_firmware_add_record(struct rmpc_firmware *firmware, struct rmpc_record record)
{
    const size_t count = firmware->record_count;
    const uint64_t known = RMPC_RECORD_VALIDATED | RMPC_RECORD_VMSA | RMPC_RECORD_2M | RMPC_RECORD_METADATA;

    if (count == RMPC_RECORDS)
        return RMPC_ERR_FULL;
    if (record.address >= RMPC_PHYSICAL_LIMIT || record.address % RECORD_SIZE || record.context >= FRAMES ||
        (record.info & ~known) || (record.gpa & ~RMPC_RMP_GPA) ||
        (count && firmware->records[count - 1].address >= record.address))
        return RMPC_ERR_ARGUMENT;
    put_record(firmware, record);
    return RMPC_OK;
}

/* ---- pages that a command works on ---- */

/*
 * A command looks at pages first and changes them then.  Nothing can come between: it changes only entries that are
 * immutable, which no instruction touches.  Only the subpage count may change meanwhile, so entries are stored with the
 * region owned, and with the count as it is then.
 */
struct page {
    uint64_t pfn;
    struct place place;
    struct rmpc_rmp_entry entry;
    enum rmpc_page_state state; /* DEFAULT: not covered, no place and no entry */
};

static void set(const struct page *page, uint64_t lo, uint64_t hi)
{
    uint64_t count;

    own(page->place.word, WORD_BUSY | WORD_FIRMWARE);
    count = load_quad(&page->place.entry->lo) & RMPC_RMP_SUBPAGE_COUNT;
    store_entry(page->place.entry, (struct rmpc_rmp_entry){(lo & ~RMPC_RMP_SUBPAGE_COUNT) | count, hi});
    disown(page->place.word, true, SAME_TRUST);
}

/* Check (2): a frame that a command may name; uncovered: without an entry too. */
static enum rmpc_firmware_status reach_frame(const struct rmpc_rmp *rmp, uint64_t pfn, bool uncovered,
                                             struct page *page)
{
    if (pfn >= FRAMES || rmpc_rmp_is_own(rmp, pfn) || is_in_reserved_segment(rmp, pfn))
        return RMPC_FW_INVALID_ADDRESS;
    *page = (struct page){.pfn = pfn, .state = RMPC_PAGE_DEFAULT};
    if (!find(rmp, pfn, &page->place))
        return uncovered ? RMPC_FW_SUCCESS : RMPC_FW_INVALID_ADDRESS;
    page->entry = load_entry(page->place.entry);
    page->state = rmpc_page_state_of(page->entry);
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status reach_page(const struct rmpc_rmp *rmp, uint64_t pa, bool uncovered, struct page *page)
{
    if ((pa & ~rmp->c_bit) % RMPC_PAGE_SIZE)
        return RMPC_FW_INVALID_ADDRESS;
    return reach_frame(rmp, frame_of(rmp, pa), uncovered, page);
}

/* Check (4): the size asked for is the entry's. */
static enum rmpc_firmware_status check_size(const struct page *page, bool large)
{
    if (large && (page->pfn % RMPC_REGION_FRAMES || !is_whole_region(&page->place)))
        return RMPC_FW_INVALID_ADDRESS;
    return large == ((page->entry.lo & RMPC_RMP_SIZE_2M) != 0) ? RMPC_FW_SUCCESS : RMPC_FW_INVALID_PAGE_SIZE;
}

/* Check (6). */
static enum rmpc_firmware_status check_owner(const struct page *page, const struct rmpc_context *guest)
{
    return rmpc_rmp_asid(page->entry) == guest->asid ? RMPC_FW_SUCCESS : RMPC_FW_INVALID_PAGE_OWNER;
}

static uint64_t metadata_gpa(const struct rmpc_context *guest)
{
    return TAG_METADATA | (guest->pfn << RMPC_PAGE_SHIFT & ~TAG & RMPC_RMP_GPA);
}

static bool is_metadata_of(const struct page *page, const struct rmpc_context *guest)
{
    return (page->entry.lo & RMPC_RMP_GPA & ~TAG) == (metadata_gpa(guest) & ~TAG);
}

static bool is_swappable(const struct page *page)
{
    return page->state == RMPC_PAGE_PRE_GUEST || page->state == RMPC_PAGE_PRE_SWAP;
}

#define TRY(expression)                                 \
    do {                                                \
        enum rmpc_firmware_status tried = (expression); \
        if (tried != RMPC_FW_SUCCESS)                   \
            return tried;                               \
    } while (0)

/* Checks (2) and (3) of the guest's context page. */
static enum rmpc_firmware_status reach_guest(struct rmpc_firmware *firmware, uint64_t gctx, struct page *page,
                                             struct rmpc_context **guest)
{
    TRY(reach_page(firmware->rmp, gctx, false, page));
    *guest = context_of(firmware, page->pfn);
    return *guest && page->state == RMPC_PAGE_CONTEXT ? RMPC_FW_SUCCESS : RMPC_FW_INVALID_GUEST;
}

/* ---- SNP_INIT and SNP_SHUTDOWN ---- */

static void fill_segment(const struct rmpc_rmp_segment *segment, uint64_t start, uint64_t end, uint64_t lo)
{
    for (uint64_t i = start; i < end; i++)
        segment->entries[i] = (struct rmpc_rmp_entry){lo, 0};
    for (uint64_t region = start / RMPC_REGION_FRAMES; segment->regions && region * RMPC_REGION_FRAMES < end; region++)
        segment->regions[region] = WORD_STEP;
}

/* Write an entry for all covered frames that touch [base, base + size). */
static void fill_entries(const struct rmpc_rmp *rmp, uint64_t base, uint64_t size, uint64_t lo)
{
    uint64_t pfn = base >> RMPC_PAGE_SHIFT;
    uint64_t last = size ? (base + size - 1) >> RMPC_PAGE_SHIFT : 0;

    for (uint64_t i = pfn >> rmp->shift; size && i < rmp->count && i <= last >> rmp->shift; i++) {
        const struct rmpc_rmp_segment *segment = &rmp->segments[i];
        uint64_t first = i << rmp->shift;
        uint64_t start = pfn > first ? pfn - first : 0;
        uint64_t end = last - first < segment->frames ? last - first + 1 : segment->frames;

        if (start < end)
            fill_segment(segment, start, end, lo);
    }
}

/* Set the subpage counts of the regions that [base, base + size) touches. */
static void count_subpages(const struct rmpc_rmp *rmp, uint64_t base, uint64_t size)
{
    uint64_t end = (base + size + REGION_BYTES - 1) / REGION_BYTES * RMPC_REGION_FRAMES;
    struct place place;

    for (uint64_t pfn = base / REGION_BYTES * RMPC_REGION_FRAMES; pfn < end; pfn += RMPC_REGION_FRAMES) {
        if (find(rmp, pfn, &place))
            place.head->lo =
                (place.head->lo & ~RMPC_RMP_SUBPAGE_COUNT) | count_others(&place) << RMPC_RMP_SUBPAGE_SHIFT;
    }
}

/* All entries zero.  Those of regions that were never changed are. */
static void clear(const struct rmpc_rmp *rmp)
{
    for (uint64_t i = 0; i < rmp->count; i++) {
        const struct rmpc_rmp_segment *segment = &rmp->segments[i];

        for (uint64_t start = 0; start < segment->frames; start += RMPC_REGION_FRAMES) {
            uint64_t end = start + RMPC_REGION_FRAMES;

            if (!segment->regions || segment->regions[start / RMPC_REGION_FRAMES])
                fill_segment(segment, start, end < segment->frames ? end : segment->frames, 0);
        }
    }
    memset(rmp->bookkeeping, 0, RMPC_RMP_ASIDS * sizeof(*rmp->bookkeeping));
}

/* Make everything HV-Fixed that is not wholly DRAM. */
static void fix_holes(const struct rmpc_firmware *firmware)
{
    const struct rmpc_rmp *rmp = firmware->rmp;
    uint64_t end = 0; /* of the DRAM so far */

    for (size_t i = 0; i < firmware->dram_count; i++) {
        const struct rmpc_extent *dram = &firmware->dram[i];
        uint64_t start = (dram->base + RMPC_PAGE_SIZE - 1) & ~(RMPC_PAGE_SIZE - 1);

        if (start > end)
            fill_entries(rmp, end, start - end, RMPC_RMP_IMMUTABLE);
        end = (dram->base + dram->size) & ~(RMPC_PAGE_SIZE - 1);
    }
    fill_entries(rmp, end, RMPC_PHYSICAL_LIMIT - end, RMPC_RMP_IMMUTABLE);
    for (size_t i = 0; i < sizeof(fixed) / sizeof(*fixed); i++)
        fill_entries(rmp, fixed[i].base, fixed[i].size, RMPC_RMP_IMMUTABLE);
}

/* Give the frames that [base, base + size) touches to the firmware. */
static void take(const struct rmpc_rmp *rmp, uint64_t base, uint64_t size, uint64_t lo)
{
    fill_entries(rmp, base, size, lo);
    count_subpages(rmp, base, size);
}

/* The frames of the RMP itself: bookkeeping area, segment table, and the entries of each segment. */
static void take_own(const struct rmpc_rmp *rmp)
{
    const uint64_t table = rmp->msrs.cfg & RMPC_RMP_CFG_SEGMENTED ? RMPC_PAGE_SIZE : 0;

    take(rmp, rmp->msrs.base, RMPC_RMP_BOOKKEEPING + table, FIRMWARE_ENTRY);
    for (uint64_t i = 0; i < rmp->count; i++)
        take(rmp, rmp->segments[i].pa, rmp->segments[i].bytes, FIRMWARE_ENTRY);
}

static enum rmpc_firmware_status snp_init(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct rmpc_rmp *rmp = firmware->rmp;
    struct page page;

    if (operands->pages > MOST_PAGES)
        return RMPC_FW_INVALID_ADDRESS;
    for (uint64_t i = 0; i < operands->pages; i++)
        TRY(reach_frame(rmp, operands->page + i, false, &page));
    clear(rmp);
    fix_holes(firmware);
    take_own(rmp);
    if (operands->pages)
        take(rmp, operands->page << RMPC_PAGE_SHIFT, operands->pages << RMPC_PAGE_SHIFT, FIRMWARE_ENTRY | IOMMU_GPA);
    firmware->context_count = 0;
    firmware->record_count = 0;
    firmware->ready = true;
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status snp_shutdown(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    const struct rmpc_rmp *rmp = firmware->rmp;
    uint64_t pfn = operands->iommu ? rmpc_rmp_next_used(rmp, 0) : rmp->frames;
    struct page page;

    for (; pfn < rmp->frames; pfn = rmpc_rmp_next_used(rmp, pfn + 1)) {
        if (!find(rmp, pfn, &page.place))
            continue;
        page.entry = load_entry(page.place.entry);
        if (rmpc_page_state_of(page.entry) == RMPC_PAGE_FIRMWARE_IOMMU)
            set(&page, page.entry.lo & ~(FIXED | RMPC_RMP_GPA), page.entry.hi);
    }
    firmware->context_count = 0;
    firmware->record_count = 0;
    firmware->ready = false;
    return RMPC_FW_SUCCESS;
}

/* ---- guests ---- */

static enum rmpc_firmware_status gctx_create(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct page page;

    TRY(reach_page(firmware->rmp, operands->page, false, &page));
    TRY(check_size(&page, false));
    if (page.state != RMPC_PAGE_FIRMWARE)
        return RMPC_FW_INVALID_PAGE_STATE;
    if (firmware->context_count == RMPC_CONTEXTS)
        return RMPC_FW_RESOURCE_LIMIT;
    set(&page, page.entry.lo | RMPC_RMP_VMSA, page.entry.hi);
    /* the page of an old context that was stored over by hand */
    if (context_of(firmware, page.pfn))
        context_of(firmware, page.pfn)->asid = 0;
    else
        put_context(firmware, (struct rmpc_context){page.pfn, 0});
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status activate(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    const struct rmpc_hardware *hardware = &firmware->rmp->hardware;
    struct rmpc_context *guest;
    struct page page;

    TRY(reach_guest(firmware, operands->page, &page, &guest));
    if (guest->asid)
        return RMPC_FW_ACTIVE;
    if (!operands->asid || operands->asid > hardware->asid_limit)
        return RMPC_FW_INVALID_ASID;
    for (size_t i = 0; i < firmware->context_count; i++)
        if (firmware->contexts[i].asid == operands->asid)
            return RMPC_FW_ASID_OWNED;
    if (hardware->bookkeeping && firmware->rmp->bookkeeping[operands->asid])
        return RMPC_FW_INVALID_CONFIG;
    guest->asid = operands->asid;
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status decommission(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct rmpc_context *guest;
    struct page page;

    TRY(reach_guest(firmware, operands->page, &page, &guest));
    set(&page, page.entry.lo & ~RMPC_RMP_VMSA, page.entry.hi);
    drop_records(firmware, guest->pfn, UINT64_MAX);
    drop_context(firmware, guest);
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status launch_update(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct rmpc_context *guest;
    struct page page, gctx;
    uint64_t hi, lo;

    TRY(reach_page(firmware->rmp, operands->page, false, &page));
    TRY(reach_guest(firmware, operands->gctx, &gctx, &guest));
    if (operands->type < TYPE_FIRST || operands->type > TYPE_LAST)
        return RMPC_FW_INVALID_PARAM;
    for (int vmpl = 1; vmpl < 4; vmpl++)
        if (operands->permissions[vmpl] & LAUNCH_RESERVED)
            return RMPC_FW_INVALID_PARAM;
    if (!guest->asid)
        return RMPC_FW_INACTIVE;
    TRY(check_size(&page, operands->large));
    if (operands->large &&
        (operands->type == TYPE_VMSA || operands->type == TYPE_SECRETS || operands->type == TYPE_CPUID))
        return RMPC_FW_INVALID_PAGE_SIZE;
    if (page.state != RMPC_PAGE_PRE_GUEST)
        return RMPC_FW_INVALID_PAGE_STATE;
    TRY(check_owner(&page, guest));
    lo = (page.entry.lo & ~FIXED) | RMPC_RMP_VALIDATED | (operands->type == TYPE_VMSA ? RMPC_RMP_VMSA : 0);
    hi = page.entry.hi & ~UINT64_C(0xffffff00);
    for (int vmpl = 1; vmpl < 4; vmpl++)
        hi |= (uint64_t)operands->permissions[vmpl] << 8 * vmpl;
    set(&page, lo, hi);
    return RMPC_FW_SUCCESS;
}

/* ---- pages ---- */

static enum rmpc_firmware_status page_reclaim(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    const bool large = operands->page & 1;
    uint64_t lo;
    struct page page;

    TRY(reach_page(firmware->rmp, operands->page & ~UINT64_C(1), false, &page));
    if (large != ((page.entry.lo & RMPC_RMP_SIZE_2M) != 0))
        return RMPC_FW_INVALID_PAGE_SIZE;
    TRY(check_size(&page, large));
    if (!(page.entry.lo & RMPC_RMP_IMMUTABLE))
        return RMPC_FW_SUCCESS;
    if (page.state != RMPC_PAGE_METADATA && page.state != RMPC_PAGE_FIRMWARE && !is_swappable(&page))
        return RMPC_FW_INVALID_PAGE_STATE;
    lo = page.entry.lo & ~FIXED;
    if (page.state == RMPC_PAGE_METADATA) {
        lo &= ~TAG;
        drop_records(firmware, UINT64_MAX, page.pfn);
    }
    set(&page, lo, page.entry.hi);
    return RMPC_FW_SUCCESS;
}

/* Is every page of the region the firmware's and plain?  It is covered. */
static bool is_firmware_region(const struct place *place)
{
    const bool large = place->head->lo & RMPC_RMP_SIZE_2M;

    for (uint64_t i = 0; i < (large ? 1 : RMPC_REGION_FRAMES); i++) {
        struct rmpc_rmp_entry entry = load_entry(&place->head[i]);
        if (rmpc_page_state_of(entry) != RMPC_PAGE_FIRMWARE || (i && (entry.lo & RMPC_RMP_SIZE_2M)))
            return false;
    }
    return true;
}

static enum rmpc_firmware_status set_state(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct page page;

    if ((operands->page & ~firmware->rmp->c_bit) % REGION_BYTES || operands->pages % RMPC_REGION_FRAMES ||
        !operands->pages || operands->pages > MOST_PAGES)
        return RMPC_FW_INVALID_ADDRESS;
    for (uint64_t i = 0; i < operands->pages; i++)
        TRY(reach_page(firmware->rmp, operands->page + (i << RMPC_PAGE_SHIFT), false, &page));
    for (uint64_t i = 0; i < operands->pages; i += RMPC_REGION_FRAMES) {
        TRY(reach_page(firmware->rmp, operands->page + (i << RMPC_PAGE_SHIFT), false, &page));
        if (!is_firmware_region(&page.place))
            return RMPC_FW_INVALID_PAGE_STATE;
    }
    for (uint64_t i = 0; i < operands->pages; i += RMPC_REGION_FRAMES) {
        TRY(reach_page(firmware->rmp, operands->page + (i << RMPC_PAGE_SHIFT), false, &page));
        own(page.place.word, WORD_BUSY | WORD_FIRMWARE);
        for (uint64_t j = 0; j < RMPC_REGION_FRAMES; j++)
            store_entry(&page.place.head[j], (struct rmpc_rmp_entry){RMPC_RMP_IMMUTABLE, page.place.head[j].hi});
        disown(page.place.word, true, TRUSTED);
    }
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status move_metadata(struct rmpc_firmware *firmware, const struct rmpc_context *guest,
                                               const struct page *src, const struct page *dst)
{
    if (dst->state != RMPC_PAGE_FIRMWARE)
        return RMPC_FW_INVALID_PAGE_STATE;
    if (!is_metadata_of(src, guest))
        return RMPC_FW_INVALID_PAGE_OWNER;
    drop_records(firmware, UINT64_MAX, dst->pfn);
    for (;;) {
        struct rmpc_record *record = record_in(firmware, src->pfn);
        struct rmpc_record moved;

        if (!record)
            break;
        moved = *record;
        moved.address = dst->pfn << RMPC_PAGE_SHIFT | moved.address % RMPC_PAGE_SIZE;
        drop_record(firmware, record);
        put_record(firmware, moved);
    }
    set(dst, (dst->entry.lo & ~RMPC_RMP_VMSA) | (src->entry.lo & RMPC_RMP_GPA), dst->entry.hi);
    set(src, src->entry.lo & ~(RMPC_RMP_GPA | RMPC_RMP_VMSA), src->entry.hi);
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status page_move(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    const uint64_t moved = RMPC_RMP_GPA | RMPC_RMP_VMSA | RMPC_RMP_VALIDATED;
    struct rmpc_context *guest;
    struct page src, dst, gctx;

    TRY(reach_page(firmware->rmp, operands->page, false, &src));
    TRY(reach_page(firmware->rmp, operands->dst, false, &dst));
    TRY(reach_guest(firmware, operands->gctx, &gctx, &guest));
    if (src.pfn == dst.pfn)
        return RMPC_FW_INVALID_ADDRESS;
    TRY(check_size(&src, operands->large));
    TRY(check_size(&dst, operands->large));
    if (src.state == RMPC_PAGE_METADATA)
        return move_metadata(firmware, guest, &src, &dst);
    if (!is_swappable(&src) || dst.state != RMPC_PAGE_PRE_GUEST)
        return RMPC_FW_INVALID_PAGE_STATE;
    if (!guest->asid)
        return RMPC_FW_INACTIVE;
    TRY(check_owner(&src, guest));
    TRY(check_owner(&dst, guest));
    set(&dst, (dst.entry.lo & ~(moved | FIXED)) | (src.entry.lo & moved), src.entry.hi);
    set(&src, src.entry.lo & ~(FIXED | RMPC_RMP_VALIDATED), src.entry.hi);
    return RMPC_FW_SUCCESS;
}

/* May the 512 pages from a 2 MiB line become one? */
static enum rmpc_firmware_status check_smashed(const struct rmpc_rmp_entry *head)
{
    const struct rmpc_rmp_entry first = load_entry(head);
    const uint64_t same = ~(RMPC_RMP_GPA | RMPC_RMP_SUBPAGE_COUNT);
    const enum rmpc_page_state state = rmpc_page_state_of(first);
    enum rmpc_firmware_status status = RMPC_FW_SUCCESS;

    if ((state != RMPC_PAGE_PRE_GUEST && state != RMPC_PAGE_PRE_SWAP) || (first.lo & RMPC_RMP_VMSA) ||
        (first.lo & RMPC_RMP_GPA) % REGION_BYTES)
        status = RMPC_FW_INVALID_PAGE_STATE;
    for (uint64_t i = 0; i < RMPC_REGION_FRAMES; i++) {
        struct rmpc_rmp_entry entry = load_entry(&head[i]);

        if (entry.lo & RMPC_RMP_SIZE_2M)
            return RMPC_FW_INVALID_PAGE_SIZE;
        /* lock is the firmware's own convention, not a condition */
        if (((entry.lo ^ first.lo) & same & ~RMPC_RMP_LOCK) || entry.hi != first.hi ||
            (entry.lo & RMPC_RMP_GPA) != (first.lo & RMPC_RMP_GPA) + (i << RMPC_PAGE_SHIFT))
            status = RMPC_FW_INVALID_PAGE_STATE;
    }
    return status;
}

static enum rmpc_firmware_status page_unsmash(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct rmpc_rmp *rmp = firmware->rmp;
    struct rmpc_rmp_entry entry;
    struct page page;

    TRY(reach_page(rmp, operands->page, false, &page));
    if (page.pfn % RMPC_REGION_FRAMES || !is_whole_region(&page.place))
        return RMPC_FW_INVALID_ADDRESS;
    TRY(check_smashed(page.place.head));
    own(page.place.word, WORD_BUSY | WORD_FIRMWARE);
    for (uint64_t i = 1; i < RMPC_REGION_FRAMES; i++) {
        entry = load_entry(&page.place.head[i]);
        entry.lo &= ~(RMPC_RMP_ASID | FIXED);
        store_entry(&page.place.head[i], entry);
    }
    entry = page.entry;
    entry.lo = (entry.lo & ~RMPC_RMP_SUBPAGE_COUNT) | RMPC_RMP_SIZE_2M;
    store_entry(page.place.head, entry);
    disown(page.place.word, true, TRUSTED);
    if (rmp->hardware.bookkeeping)
        __atomic_fetch_add(&rmp->bookkeeping[rmpc_rmp_asid(entry)], rmp->hardware.bookkeeping - RMPC_REGION_FRAMES,
                           __ATOMIC_RELAXED);
    return RMPC_FW_SUCCESS;
}

static void make_metadata(const struct page *page, const struct rmpc_context *guest)
{
    set(page, (page->entry.lo & ~(RMPC_RMP_GPA | RMPC_RMP_VMSA)) | metadata_gpa(guest), page->entry.hi);
}

static enum rmpc_firmware_status md_init(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct rmpc_context *guest;
    struct page page, gctx;

    TRY(reach_page(firmware->rmp, operands->page, false, &page));
    TRY(reach_guest(firmware, operands->gctx, &gctx, &guest));
    TRY(check_size(&page, false));
    if (page.state != RMPC_PAGE_FIRMWARE)
        return RMPC_FW_INVALID_PAGE_STATE;
    make_metadata(&page, guest);
    return RMPC_FW_SUCCESS;
}

/* Check (2) of a metadata record: its page; the record's address without the C-bit. */
static enum rmpc_firmware_status reach_record(const struct rmpc_firmware *firmware, uint64_t mdata, struct page *page,
                                              uint64_t *address)
{
    *address = mdata & ~firmware->rmp->c_bit;
    if (*address % RECORD_SIZE)
        return RMPC_FW_INVALID_ADDRESS;
    return reach_page(firmware->rmp, *address & ~(RMPC_PAGE_SIZE - 1), false, page);
}

static enum rmpc_firmware_status swap_out(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    struct page src, dst, mdata, gctx;
    struct rmpc_context *guest;
    struct rmpc_record record;
    uint64_t address;

    TRY(reach_page(firmware->rmp, operands->page, false, &src));
    TRY(reach_page(firmware->rmp, operands->dst, true, &dst));
    TRY(reach_record(firmware, operands->mdata, &mdata, &address));
    TRY(reach_guest(firmware, operands->gctx, &gctx, &guest));
    TRY(check_size(&src, operands->large));
    if (dst.state != RMPC_PAGE_DEFAULT)
        TRY(check_size(&dst, operands->large));
    if ((src.state != RMPC_PAGE_METADATA || operands->large) && !is_swappable(&src))
        return RMPC_FW_INVALID_PAGE_STATE;
    if ((dst.state != RMPC_PAGE_DEFAULT && dst.state != RMPC_PAGE_FIRMWARE) || mdata.state != RMPC_PAGE_METADATA)
        return RMPC_FW_INVALID_PAGE_STATE;
    if (!is_metadata_of(&mdata, guest) || (src.state == RMPC_PAGE_METADATA && !is_metadata_of(&src, guest)))
        return RMPC_FW_INVALID_PAGE_OWNER;
    if (src.state != RMPC_PAGE_METADATA) {
        if (!guest->asid)
            return RMPC_FW_INACTIVE;
        TRY(check_owner(&src, guest));
    }
    if (record_at(firmware, address))
        return RMPC_FW_INVALID_MDATA_ENTRY;
    if (firmware->record_count == RMPC_RECORDS)
        return RMPC_FW_RESOURCE_LIMIT;
    record = (struct rmpc_record){
        .address = address, .context = guest->pfn, .gpa = src.entry.lo & RMPC_RMP_GPA, .hi = src.entry.hi};
    if (src.state == RMPC_PAGE_METADATA) {
        /* what the records in it say would have to be kept with it, which is not modelled */
        if (record_in(firmware, src.pfn) || src.pfn == mdata.pfn)
            return RMPC_FW_INVALID_PAGE_STATE;
        record.info = RMPC_RECORD_METADATA;
        set(&src, src.entry.lo & ~(RMPC_RMP_GPA | RMPC_RMP_VMSA), src.entry.hi);
    } else {
        record.info = (src.entry.lo & RMPC_RMP_VALIDATED ? RMPC_RECORD_VALIDATED : 0) |
                      (src.entry.lo & RMPC_RMP_VMSA ? RMPC_RECORD_VMSA : 0) | (operands->large ? RMPC_RECORD_2M : 0);
        set(&src, src.entry.lo & ~RMPC_RMP_VALIDATED, src.entry.hi);
    }
    put_record(firmware, record);
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status swap_in(struct rmpc_firmware *firmware, const struct rmpc_operands *operands)
{
    const uint64_t from_record = RMPC_RMP_GPA | RMPC_RMP_VMSA | RMPC_RMP_VALIDATED;
    struct page src, dst, mdata, gctx;
    struct rmpc_context *guest;
    struct rmpc_record *record;
    uint64_t address, lo;

    TRY(reach_page(firmware->rmp, operands->page, true, &src));
    TRY(reach_page(firmware->rmp, operands->dst, false, &dst));
    TRY(reach_record(firmware, operands->mdata, &mdata, &address));
    TRY(reach_guest(firmware, operands->gctx, &gctx, &guest));
    record = record_at(firmware, address);
    if (!record || record->context != guest->pfn)
        return RMPC_FW_INVALID_MDATA_ENTRY;
    if (operands->large != ((record->info & RMPC_RECORD_2M) != 0))
        return RMPC_FW_INVALID_PAGE_SIZE;
    if (operands->large && src.pfn % RMPC_REGION_FRAMES)
        return RMPC_FW_INVALID_ADDRESS;
    TRY(check_size(&dst, operands->large));
    if (record->info & RMPC_RECORD_METADATA) {
        if (dst.state != RMPC_PAGE_FIRMWARE)
            return RMPC_FW_INVALID_PAGE_STATE;
        make_metadata(&dst, guest);
    } else {
        if (dst.state != RMPC_PAGE_PRE_GUEST)
            return RMPC_FW_INVALID_PAGE_STATE;
        if (!guest->asid)
            return RMPC_FW_INACTIVE;
        TRY(check_owner(&dst, guest));
        lo = (dst.entry.lo & ~from_record) | record->gpa;
        lo |= record->info & RMPC_RECORD_VMSA ? RMPC_RMP_VMSA : 0;
        lo |= record->info & RMPC_RECORD_VALIDATED ? RMPC_RMP_VALIDATED : 0;
        set(&dst, lo, record->hi);
    }
    drop_record(firmware, record);
    return RMPC_FW_SUCCESS;
}

static enum rmpc_firmware_status execute(struct rmpc_firmware *firmware, enum rmpc_command command,
                                         const struct rmpc_operands *operands)
{
    if (!firmware->rmp) /* check (1) */
        return command == RMPC_SNP_INIT ? RMPC_FW_INVALID_CONFIG : RMPC_FW_INVALID_PLATFORM_STATE;
    if (firmware->ready == (command == RMPC_SNP_INIT))
        return RMPC_FW_INVALID_PLATFORM_STATE;
    switch (command) {
    case RMPC_SNP_INIT:
        return snp_init(firmware, operands);
    case RMPC_SNP_SHUTDOWN:
        return snp_shutdown(firmware, operands);
    case RMPC_SNP_DECOMMISSION:
        return decommission(firmware, operands);
    case RMPC_SNP_ACTIVATE:
        return activate(firmware, operands);
    case RMPC_SNP_GCTX_CREATE:
        return gctx_create(firmware, operands);
    case RMPC_SNP_LAUNCH_UPDATE:
        return launch_update(firmware, operands);
    case RMPC_SNP_PAGE_SWAP_OUT:
        return swap_out(firmware, operands);
    case RMPC_SNP_PAGE_SWAP_IN:
        return swap_in(firmware, operands);
    case RMPC_SNP_PAGE_MOVE:
        return page_move(firmware, operands);
    case RMPC_SNP_MD_INIT:
        return md_init(firmware, operands);
    case RMPC_SNP_PAGE_SET_STATE:
        return set_state(firmware, operands);
    case RMPC_SNP_PAGE_RECLAIM:
        return page_reclaim(firmware, operands);
    case RMPC_SNP_PAGE_UNSMASH:
        return page_unsmash(firmware, operands);
    }
    return RMPC_FW_INVALID_PARAM;
}

enum rmpc_firmware_status rmpc_firmware_command(struct rmpc_firmware *firmware, enum rmpc_command command,
                                                const struct rmpc_operands *operands)
{
    enum rmpc_firmware_status status = execute(firmware, command, operands);

    rmpc_report(firmware->events, RMPC_EVENT_FIRMWARE, 0, (int32_t)status, (uint64_t)command, operands->page,
                operands->gctx);
    return status;
}
