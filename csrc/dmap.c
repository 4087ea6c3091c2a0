/* The direct map: set-up, the build at boot (direct-map section 2), lookup (section 3), rebuilding, listing. */
#include "rmpcore/dmap.h"

#include <string.h>

#include "dmap_internal.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define SIZE_2M (2 * MIB)
#define SIZE_1G (KIB * MIB)
#define FIRST_MIB MIB
/* What no entry can do without: P to PSE, and the frame.  (NX or G may be missing.) */
#define NEEDED (RMPC_PTE_ADDRESS | UINT64_C(0xff))

static uint64_t down(uint64_t value, uint64_t unit)
{
    return value - value % unit;
}

static uint64_t up(uint64_t value, uint64_t unit)
{
    return down(value + unit - 1, unit);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- set-up ---- */

/* The C-bit lies above the address bits that every machine has, so in no page's offset. */
#define C_BIT_LOWEST (UINT64_C(1) << 32)

static bool config_is_possible(const struct rmpc_dmap_config *config)
{
    uint64_t kernel_half, limit;

    if (config->levels != 4 && config->levels != 5)
        return false;
    if (config->large_level < 1 || config->large_level > 3)
        return false;
    if (~config->supported_mask & NEEDED || ~config->default_mask & NEEDED)
        return false;
    for (int i = 0; i < 6; i++)
        if (config->cache_modes[i] & ~(RMPC_PTE_PWT | RMPC_PTE_PCD | RMPC_PTE_PAT))
            return false;
    kernel_half = UINT64_MAX << (config->levels == 5 ? 56 : 47);
    limit = config->levels == 5 ? RMPC_PHYSICAL_LIMIT : UINT64_C(1) << 46;
    if (config->page_offset % SIZE_1G || config->page_offset < kernel_half || config->page_offset > UINT64_MAX - limit)
        return false;
    if (config->c_bit && config->c_bit < C_BIT_LOWEST)
        return false;
    return !(config->c_bit & (config->c_bit - 1)) && !(config->c_bit & ~RMPC_PTE_ADDRESS);
}

/* An entry cannot name memory whose addresses have the encryption bit, or more. */
static bool is_below_c_bit(const struct rmpc_mem *mem, uint64_t c_bit)
{
    const struct rmpc_range *last = mem->count ? &mem->ranges[mem->count - 1] : NULL;

    return !c_bit || !last || last->base + last->size <= c_bit;
}

enum rmpc_status rmpc_dmap_init(struct rmpc_dmap *dmap, struct rmpc_mem *mem, const struct rmpc_dmap_config *config,
                                struct rmpc_frames *mapped, size_t mapped_room, const struct rmpc_events *events)
{
    if (!config_is_possible(config))
        return RMPC_ERR_ARGUMENT;
    if (rmpc_mem_check(mem) != RMPC_OK || !is_below_c_bit(mem, config->c_bit))
        return RMPC_ERR_RANGE;
    memset(dmap, 0, sizeof(*dmap));
    dmap->mem = mem;
    dmap->config = *config;
    dmap->root = RMPC_NO_PAGE;
    dmap->mapped = mapped;
    dmap->mapped_room = mapped_room;
    dmap->events = events;
    return RMPC_OK;
}

/* The address of the root table's slot 0, counted back from the kernel half: the root's upper half maps the upper half
 * of the canonical addresses. */
static uint64_t root_va(const struct rmpc_dmap *dmap)
{
    const int top = dmap->config.levels;

    return (UINT64_MAX << (12 + 9 * top - 1)) - rmpc_level_size(top) * (TABLE_ENTRIES / 2);
}

/* Use this page of memory as the root table. */
static void set_root(struct rmpc_dmap *dmap, uint64_t root)
{
    dmap->root = root;
    for (size_t i = 0; i < dmap->mem->count; i++)
        if (root - dmap->mem->ranges[i].base < dmap->mem->ranges[i].size)
            dmap->home = dmap->mem->ranges[i];
}

uint64_t rmpc_table_alloc(struct rmpc_dmap *dmap, int level)
{
    uint64_t pa = rmpc_mem_alloc(dmap->mem);

    if (pa == RMPC_NO_PAGE) {
        rmpc_report(dmap->events, RMPC_EVENT_ALLOC_FAIL, level, 0, 0, 0, 0);
    } else {
        dmap->counters.table_pages++;
        rmpc_report(dmap->events, RMPC_EVENT_TABLE_ALLOC, level, 0, pa, 0, 0);
    }
    return pa;
}

/* ---- the list of mapped frame ranges ---- */

/* The first range that ends at or after the frame. */
static size_t find_mapped(const struct rmpc_dmap *dmap, uint64_t pfn)
{
    size_t low = 0;
    size_t high = dmap->mapped_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (dmap->mapped[middle].end < pfn)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool rmpc_dmap_is_mapped(const struct rmpc_dmap *dmap, uint64_t pfn)
{
    size_t i = find_mapped(dmap, pfn);

    if (i < dmap->mapped_count && dmap->mapped[i].end == pfn)
        i++;
    return i < dmap->mapped_count && dmap->mapped[i].start <= pfn;
}

enum rmpc_status rmpc_dmap_add_mapped(struct rmpc_dmap *dmap, uint64_t start, uint64_t end)
{
    size_t first = find_mapped(dmap, start);
    size_t last = first;

    if (start >= end)
        return RMPC_OK;
    while (last < dmap->mapped_count && dmap->mapped[last].start <= end) {
        start = smaller(start, dmap->mapped[last].start);
        end = end > dmap->mapped[last].end ? end : dmap->mapped[last].end;
        last++;
    }
    if (last == first) {
        if (dmap->mapped_count == dmap->mapped_room)
            return RMPC_ERR_FULL;
        memmove(&dmap->mapped[first + 1], &dmap->mapped[first], (dmap->mapped_count - first) * sizeof(*dmap->mapped));
        dmap->mapped_count++;
    } else {
        memmove(&dmap->mapped[first + 1], &dmap->mapped[last], (dmap->mapped_count - last) * sizeof(*dmap->mapped));
        dmap->mapped_count -= last - first - 1;
    }
    dmap->mapped[first] = (struct rmpc_frames){start, end};
    if (end > dmap->max_pfn_mapped)
        dmap->max_pfn_mapped = end;
    return RMPC_OK;
}

/* ---- lookup ---- */

struct rmpc_walk rmpc_walk_anywhere(const struct rmpc_dmap *dmap, uint64_t va, int stop_level)
{
    return dmap->config.levels == 4 ? rmpc_walk_with(dmap, va, stop_level, 4, true)
                                    : rmpc_walk_with(dmap, va, stop_level, 5, true);
}

struct rmpc_walk rmpc_dmap_lookup(const struct rmpc_dmap *dmap, uint64_t va)
{
    return rmpc_walk_to(dmap, va, 1);
}

/* ---- boot ---- */

struct boot {
    struct rmpc_dmap *dmap;
    const struct rmpc_boot_memory *memory;
    enum rmpc_status status;
    uint64_t last; /* end of the last slot that was mapped */
    size_t kept;   /* the e820 row that kept a slot last */
};

/* Pages of the sizes of levels 2 to largest are allowed in [start, end); largest 1: small pages only. */
struct piece {
    uint64_t start;
    uint64_t end;
    int largest;
};

/* Is there memory of a type that must stay mapped anywhere in [start, start + size)?  Slots are asked about in ascending
 * order and rows mostly are in it, so the row that kept the last slot, or one soon after it, is likely to keep this. */
static bool keeps_slot(struct boot *boot, uint64_t start, uint64_t size)
{
    const struct rmpc_boot_memory *memory = boot->memory;

    for (size_t n = 0; n < memory->e820_count; n++) {
        const size_t i = (boot->kept + n) % memory->e820_count;
        const struct rmpc_e820 *row = &memory->e820[i];
        if (row->type != RMPC_E820_USABLE && row->type != RMPC_E820_ACPI && row->type != RMPC_E820_KERNEL_RESERVED)
            continue;
        if (row->size && row->base < start + size && row->base + row->size > start) {
            boot->kept = i;
            return true;
        }
    }
    return false;
}

/* Does one memory range hold all of [start, end)? */
static bool in_one_range(const struct rmpc_boot_memory *memory, uint64_t start, uint64_t end)
{
    size_t i = rmpc_extents_find(memory->memory, memory->memory_count, start);

    return i < memory->memory_count && memory->memory[i].base <= start &&
           end <= memory->memory[i].base + memory->memory[i].size;
}

static uint64_t new_boot_table(struct rmpc_dmap *dmap, int level)
{
    uint64_t pa = rmpc_table_alloc(dmap, level);

    if (pa != RMPC_NO_PAGE)
        memset(rmpc_table_at(dmap, pa), 0, RMPC_PAGE_SIZE);
    return pa;
}

/* The table below a slot of this level, hung there if there is none; NULL: no page for it. */
static uint64_t *boot_table_below(struct rmpc_dmap *dmap, uint64_t *slot, int level)
{
    if (!rmpc_pte_is_table(*slot, level)) {
        uint64_t pa = new_boot_table(dmap, level - 1);
        if (pa == RMPC_NO_PAGE)
            return NULL;
        *slot = pa | RMPC_PTE_BOOT_TABLE | dmap->config.c_bit;
    }
    return rmpc_table_at(dmap, *slot);
}

/* Leaf flags at boot. */
static uint64_t boot_flags(const struct rmpc_dmap *dmap, int level)
{
    return (RMPC_PTE_KERNEL | dmap->config.c_bit | (level > 1 ? RMPC_PTE_PSE : 0)) & dmap->config.default_mask;
}

/* Hang a table of 512 leaves into an empty slot whose span, from physical address start, lies all in the piece: what
 * step 4 comes to there, with each byte written once.  false: no page for it. */
static bool fill_whole(struct rmpc_dmap *dmap, uint64_t *slot, uint64_t start, int level)
{
    const int below = level - 1;
    const uint64_t first = rmpc_pte_make(start, boot_flags(dmap, below), dmap->config.c_bit);
    const uint64_t pa = rmpc_table_alloc(dmap, below);

    if (pa == RMPC_NO_PAGE)
        return false;
    rmpc_fill_table(rmpc_table_at(dmap, pa), first, 12 + 9 * ((unsigned)below - 1));
    *slot = pa | RMPC_PTE_BOOT_TABLE | dmap->config.c_bit;
    dmap->counters.pages[below] += TABLE_ENTRIES;
    return true;
}

/* Section 2.1 step 4, for one table: map what of [start, end) lies in it.  table_va is the address that its first
 * slot maps. */
static void fill(struct boot *boot, uint64_t *table, uint64_t table_va, int level, const struct piece *piece)
{
    struct rmpc_dmap *dmap = boot->dmap;
    const uint64_t size = rmpc_level_size(level);
    const uint64_t flags = boot_flags(dmap, level);
    uint64_t start = table_va - dmap->config.page_offset; /* of a level-5 slot it may lie below physical 0 */

    for (unsigned i = 0; i < TABLE_ENTRIES && boot->status == RMPC_OK; i++, start += size) {
        uint64_t *slot = &table[i];
        uint64_t *below;

        if ((int64_t)(start + size) <= (int64_t)piece->start)
            continue;
        if ((int64_t)start >= (int64_t)piece->end) {
            if (level > 3)
                return;
            if (*slot && !keeps_slot(boot, start, size))
                *slot = 0;
            continue;
        }
        if (level <= piece->largest && !rmpc_pte_is_table(*slot, level)) {
            if (!*slot)
                *slot = rmpc_pte_make(start, flags, dmap->config.c_bit);
            dmap->counters.pages[level]++;
            boot->last = start + size;
            continue;
        }
        if (!*slot && level - 1 == piece->largest && piece->start <= start && start + size <= piece->end) {
            if (fill_whole(dmap, slot, start, level))
                boot->last = start + size;
            else
                boot->status = RMPC_ERR_NOMEM;
            continue;
        }
        below = boot_table_below(dmap, slot, level);
        if (below)
            fill(boot, below, table_va + i * size, level - 1, piece);
        else
            boot->status = RMPC_ERR_NOMEM;
    }
}

static void map_piece(struct boot *boot, const struct piece *piece)
{
    struct rmpc_dmap *dmap = boot->dmap;

    fill(boot, rmpc_table_at(dmap, dmap->root), root_va(dmap), dmap->config.levels, piece);
}

/* Section 2.1: map one range that is RAM throughout. */
static void map_range(struct boot *boot, uint64_t start, uint64_t end)
{
    const int large = boot->dmap->config.large_level;
    const uint64_t last_2m = down(end, SIZE_2M);
    const uint64_t cuts[] = {
        smaller(up(start, SIZE_2M), end),
        smaller(up(start, SIZE_1G), last_2m),
        down(end, SIZE_1G),
        last_2m,
        end,
    };
    static const int sizes[] = {1, 2, 3, 2, 1};
    struct piece pieces[5];
    size_t count = 0;

    /* step 1: at most five pieces, by what alignment allows */
    for (size_t i = 0; i < 5; i++) {
        if (cuts[i] <= start)
            continue;
        pieces[count] = (struct piece){start, cuts[i], sizes[i] < large ? sizes[i] : large};
        start = cuts[i];
        count++;
    }
    /* step 2: a larger page is allowed too where the memory around the piece fills it */
    for (size_t i = 0; i < count; i++) {
        struct piece *piece = &pieces[i];
        for (int level = piece->largest + 1; level <= large; level++) {
            uint64_t size = rmpc_level_size(level);
            if (in_one_range(boot->memory, down(piece->start, size), up(piece->end, size)))
                piece->largest = level;
        }
    }
    /* steps 3 and 4 */
    for (size_t i = 0; i < count; i++) {
        struct piece piece = pieces[i];
        while (i + 1 < count && pieces[i + 1].largest == piece.largest)
            piece.end = pieces[++i].end;
        map_piece(boot, &piece);
    }
}

static void map_memory(struct boot *boot, uint64_t start, uint64_t end)
{
    map_range(boot, start, end);
    if (boot->status == RMPC_OK)
        boot->status = rmpc_dmap_add_mapped(boot->dmap, start >> RMPC_PAGE_SHIFT, boot->last >> RMPC_PAGE_SHIFT);
}

/* Map the memory inside [start, end), in ascending order; gives its size. */
static uint64_t map_memory_in(struct boot *boot, uint64_t start, uint64_t end)
{
    uint64_t size = 0;

    for (size_t i = 0; i < boot->memory->memory_count && boot->status == RMPC_OK; i++) {
        const struct rmpc_extent *memory = &boot->memory->memory[i];
        uint64_t from = start > memory->base ? start : memory->base;
        uint64_t to = smaller(end, memory->base + memory->size);

        if (from < to) {
            map_memory(boot, from, to);
            size += to - from;
        }
    }
    return size;
}

/* End of the highest free 2 MiB block between 1 MiB and the top; the top rounded down if there is none. */
static uint64_t start_point(const struct rmpc_boot_memory *memory, uint64_t top)
{
    for (size_t i = memory->memory_count; i-- > 0;) {
        uint64_t floor = memory->memory[i].base > FIRST_MIB ? memory->memory[i].base : FIRST_MIB;
        uint64_t end = down(smaller(memory->memory[i].base + memory->memory[i].size, top), SIZE_2M);

        while (end >= floor + SIZE_2M) {
            uint64_t block = end - SIZE_2M;
            size_t r = rmpc_extents_find(memory->reserved, memory->reserved_count, block);
            if (r == memory->reserved_count || memory->reserved[r].base >= end)
                return end;
            end = down(memory->reserved[r].base, SIZE_2M);
        }
    }
    top = down(top, SIZE_2M);
    return top > FIRST_MIB ? top : FIRST_MIB;
}

/* The image's mapping in the high window as it is when the direct map is built (section 2, observed): it comes
 * from the kernel's own image, so the default mask has no say in it. */
static void map_image(struct boot *boot)
{
    struct rmpc_dmap *dmap = boot->dmap;
    const struct rmpc_image *image = &dmap->config.image;
    const uint64_t flags = (RMPC_PTE_KERNEL | RMPC_PTE_PSE | dmap->config.c_bit) & ~RMPC_PTE_NX;

    if (!image->text)
        return;
    boot->status = rmpc_dmap_put_high_path(dmap);
    for (uint64_t va = down(image->text, SIZE_2M); va < image->brk_end && boot->status == RMPC_OK; va += SIZE_2M)
        boot->status = rmpc_dmap_put_leaf(
            dmap, va, 2, rmpc_pte_make(va - RMPC_HIGH_MAP + image->phys_base, flags, dmap->config.c_bit));
}

/* Steps without memory map nothing: where the highest memory below `end` ends. */
static uint64_t skip_hole(const struct rmpc_boot_memory *memory, uint64_t end)
{
    uint64_t highest = 0;

    for (size_t i = 0; i < memory->memory_count && memory->memory[i].base < end; i++)
        highest = memory->memory[i].base + memory->memory[i].size;
    return smaller(highest, end);
}

enum rmpc_status rmpc_dmap_boot(struct rmpc_dmap *dmap, const struct rmpc_boot_memory *memory)
{
    struct boot boot = {dmap, memory, RMPC_OK, 0, 0};
    uint64_t top = memory->max_pfn << RMPC_PAGE_SHIFT;
    uint64_t point, end, step;
    uint64_t mapped = 0;
    uint64_t root;

    if (rmpc_extents_check(memory->memory, memory->memory_count) != RMPC_OK || !memory->max_pfn ||
        memory->max_pfn > rmpc_dmap_limit(dmap) >> RMPC_PAGE_SHIFT)
        return RMPC_ERR_RANGE;
    for (size_t i = 0; i < memory->memory_count; i++)
        if (memory->memory[i].base + memory->memory[i].size > rmpc_dmap_limit(dmap))
            return RMPC_ERR_RANGE;

    root = new_boot_table(dmap, dmap->config.levels);
    if (root == RMPC_NO_PAGE)
        return RMPC_ERR_NOMEM;
    set_root(dmap, root);
    map_image(&boot);

    /* section 2.2: the first MiB, then from the top down in growing steps */
    if (boot.status == RMPC_OK)
        map_memory(&boot, 0, FIRST_MIB);
    point = start_point(memory, top);
    end = point;
    step = SIZE_2M;
    while ((end = skip_hole(memory, end)) > FIRST_MIB && boot.status == RMPC_OK) {
        uint64_t start = end > step ? down(end - 1, step) : FIRST_MIB;
        mapped += map_memory_in(&boot, start, end);
        end = start;
        if (mapped >= step)
            step *= 256;
    }
    if (boot.status == RMPC_OK)
        map_memory_in(&boot, point, top);
    dmap->page_total = rmpc_dmap_page_total(&dmap->counters);
    return boot.status;
}

/* ---- rebuilding ---- */

uint64_t *rmpc_slot_at(const struct rmpc_dmap *dmap, uint64_t va, int level)
{
    uint64_t pointer = dmap->root;

    for (int l = dmap->config.levels;; l--) {
        uint64_t *table = rmpc_table_at(dmap, pointer);
        uint64_t *slot;

        if (!table)
            return NULL;
        slot = &table[rmpc_table_index(va, l)];
        if (l == level)
            return slot;
        if (!rmpc_pte_is_table(*slot, l))
            return NULL;
        pointer = *slot;
    }
}

enum rmpc_status rmpc_dmap_put_root(struct rmpc_dmap *dmap, uint64_t root)
{
    void *table = root % RMPC_PAGE_SIZE ? NULL : rmpc_mem_at(dmap->mem, root, RMPC_PAGE_SIZE);

    if (!table)
        return RMPC_ERR_RANGE;
    memset(table, 0, RMPC_PAGE_SIZE);
    set_root(dmap, root);
    dmap->counters.table_pages = 1;
    return RMPC_OK;
}

/* A free slot for an entry to be put there. */
static enum rmpc_status free_slot(struct rmpc_dmap *dmap, uint64_t va, int level, int highest, uint64_t **slot)
{
    if (level < 1 || level > highest || va % rmpc_level_size(level))
        return RMPC_ERR_ARGUMENT;
    *slot = rmpc_slot_at(dmap, va, level);
    return *slot && !**slot ? RMPC_OK : RMPC_ERR_STATE;
}

enum rmpc_status rmpc_dmap_put_table(struct rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw)
{
    uint64_t *slot;
    uint64_t *table;
    enum rmpc_status status = free_slot(dmap, va, level, dmap->config.levels, &slot);

    if (status != RMPC_OK)
        return status;
    if (!rmpc_pte_is_table(raw, level))
        return RMPC_ERR_STATE;
    table = rmpc_table_at(dmap, raw);
    if (!table)
        return RMPC_ERR_RANGE;
    memset(table, 0, RMPC_PAGE_SIZE);
    *slot = raw;
    dmap->counters.table_pages++;
    return RMPC_OK;
}

enum rmpc_status rmpc_dmap_put_leaf(struct rmpc_dmap *dmap, uint64_t va, int level, uint64_t raw)
{
    uint64_t *slot;
    enum rmpc_status status = free_slot(dmap, va, level, 3, &slot);

    if (status != RMPC_OK)
        return status;
    if (!raw || rmpc_pte_is_table(raw, level))
        return RMPC_ERR_STATE;
    *slot = raw;
    return RMPC_OK;
}

enum rmpc_status rmpc_dmap_put_high_path(struct rmpc_dmap *dmap)
{
    for (int level = dmap->config.levels; level > 2; level--) {
        uint64_t *slot = rmpc_slot_at(dmap, RMPC_HIGH_MAP, level);
        if (!slot)
            return RMPC_ERR_STATE;
        if (*slot && !rmpc_pte_is_table(*slot, level))
            return RMPC_ERR_STATE;
        if (!boot_table_below(dmap, slot, level))
            return RMPC_ERR_NOMEM;
    }
    return RMPC_OK;
}

/* ---- listing ---- */

struct listing {
    const struct rmpc_dmap *dmap;
    uint64_t first; /* first and last byte of the range */
    uint64_t last;
    int top_level;
    bool (*report)(void *user, const struct rmpc_dmap_entry *entry);
    void *user;
};

static bool list_table(const struct listing *listing, uint64_t pointer, uint64_t table_va, int level)
{
    const uint64_t *table = rmpc_table_at(listing->dmap, pointer);
    const uint64_t size = rmpc_level_size(level);

    for (unsigned i = 0; table && i < TABLE_ENTRIES; i++) {
        uint64_t va = table_va + i * size;
        struct rmpc_dmap_entry entry = {va, table[i], level, rmpc_pte_is_table(table[i], level)};

        if (!table[i] || va + (size - 1) < listing->first || va > listing->last)
            continue;
        if (level <= listing->top_level && !listing->report(listing->user, &entry))
            return false;
        if (entry.table && !list_table(listing, table[i], va, level - 1))
            return false;
    }
    return true;
}

void rmpc_dmap_list(const struct rmpc_dmap *dmap, uint64_t va, uint64_t size, int top_level,
                    bool (*report)(void *user, const struct rmpc_dmap_entry *entry), void *user)
{
    struct listing listing = {dmap, va, va + (size - 1), top_level, report, user};

    if (size && dmap->root != RMPC_NO_PAGE)
        list_table(&listing, dmap->root, root_va(dmap), dmap->config.levels);
}

/* ---- census ---- */

/* Count what of [first, last] lies in one table. */
static void count_table(const struct rmpc_dmap *dmap, uint64_t pointer, uint64_t table_va, int level, uint64_t first,
                        uint64_t last, struct rmpc_census *census)
{
    const uint64_t *table = rmpc_table_at(dmap, pointer);
    const uint64_t size = rmpc_level_size(level);

    for (unsigned i = 0; table && i < TABLE_ENTRIES; i++) {
        const uint64_t va = table_va + i * size;

        if (!table[i] || va + (size - 1) < first || va > last)
            continue;
        if (rmpc_pte_is_table(table[i], level))
            count_table(dmap, table[i], va, level - 1, first, last, census);
        else if (table[i] & RMPC_PTE_P) /* above level 3 this would be a table */
            census->leaves[level]++;
        else if (level <= 3)
            census->missing += size >> RMPC_PAGE_SHIFT;
    }
}

void rmpc_dmap_census(const struct rmpc_dmap *dmap, struct rmpc_census *census)
{
    const uint64_t first = dmap->config.page_offset;

    memset(census, 0, sizeof(*census));
    if (dmap->root != RMPC_NO_PAGE)
        count_table(dmap, dmap->root, root_va(dmap), dmap->config.levels, first, first + (rmpc_dmap_limit(dmap) - 1),
                    census);
}
