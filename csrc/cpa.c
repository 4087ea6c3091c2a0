/*
 * Changing page attributes ("CPA"), and the large-page split (direct-map sections 4 to 7).
 *
 * One engine does every request: a primary run over the addresses asked for and, where the request wants it,
 * alias runs over the other mappings of the same frames.
 */
#include "rmpcore/cpa.h"

#include "dmap_internal.h"

/* What is asked for. */
struct request {
    uint64_t va;
    uint64_t pages;
    uint64_t set;
    uint64_t clear;
    bool force_split;
    bool check_aliases;
};

/* One run of the engine: the primary one, or an alias's. */
struct run {
    struct rmpc_dmap *dmap;
    uint64_t set;
    uint64_t clear;
    bool force_split;
    bool check_aliases;
    bool primary;
    bool enforce;       /* the split under way enforces static protections */
    bool changed;       /* some entry was written: a flush is needed */
    bool touched_alias; /* the final flush has to be a full one */
};

static int run_over(struct run *run, uint64_t va, uint64_t pages);

static void flush_all(struct rmpc_dmap *dmap)
{
    dmap->counters.flush_all++;
    rmpc_report(dmap->events, RMPC_EVENT_FLUSH_ALL, 0, 0, 0, 0, 0);
}

static bool in_direct_map(const struct rmpc_dmap *dmap, uint64_t va)
{
    return va - dmap->config.page_offset < dmap->max_pfn_mapped << RMPC_PAGE_SHIFT;
}

static uint64_t image_frame(const struct rmpc_image *image, uint64_t va)
{
    return (va - RMPC_HIGH_MAP + image->phys_base) >> RMPC_PAGE_SHIFT;
}

static uint64_t up_2m(uint64_t va)
{
    return (va + rmpc_level_size(2) - 1) & ~(rmpc_level_size(2) - 1);
}

/* ---- static protections: section 5 ---- */

static bool overlap(uint64_t start, uint64_t end, uint64_t other_start, uint64_t other_end)
{
    return start < other_end && other_start < end;
}

/* These flags without the bits that pages of this range may not have.
 *   flags       in small or large form: P, RW and NX are at the same place in both
 *   large_size  size of the large page at hand, 0 for small pages */
static uint64_t protect(const struct rmpc_dmap *dmap, uint64_t flags, uint64_t va, uint64_t pa, uint64_t size,
                        uint64_t large_size)
{
    const struct rmpc_image *image = &dmap->config.image;
    uint64_t pfn = pa >> RMPC_PAGE_SHIFT;
    uint64_t end_pfn = pfn + (size >> RMPC_PAGE_SHIFT);

    if (!(flags & RMPC_PTE_P) || !image->text)
        return flags;
    if (overlap(va, va + size, image->text, image->etext))
        flags &= ~RMPC_PTE_NX;
    if (!dmap->kernel_readonly)
        return flags;
    if (size != large_size && overlap(va, va + size, image->text, up_2m(image->end_rodata))) {
        struct rmpc_walk walk = rmpc_dmap_lookup(dmap, va);
        if (walk.entry && walk.level > 1)
            flags &= ~RMPC_PTE_RW;
    }
    if (overlap(pfn, end_pfn, image_frame(image, image->start_rodata), image_frame(image, image->end_rodata)))
        flags &= ~RMPC_PTE_RW;
    return flags;
}

/* ---- the split: section 4, step 4 ---- */

/* va: the address at hand, which need not be the leaf's first; its frame decides */
static void count_split(struct rmpc_dmap *dmap, uint64_t va, int level)
{
    const struct rmpc_image *image = &dmap->config.image;
    uint64_t pfn = (va - dmap->config.page_offset) >> RMPC_PAGE_SHIFT;

    if (va >= RMPC_HIGH_MAP)
        pfn = image_frame(image, va);
    if (!rmpc_dmap_is_mapped(dmap, pfn) || !dmap->counters.pages[level])
        return;
    dmap->counters.pages[level]--;
    dmap->counters.pages[level - 1] += TABLE_ENTRIES;
    dmap->counters.splits[level]++;
}

/* Fill a table with the 512 children of a leaf. */
static void fill_children(const struct run *run, uint64_t *table, uint64_t raw, uint64_t va, int level)
{
    const struct rmpc_dmap *dmap = run->dmap;
    const uint64_t c_bit = dmap->config.c_bit;
    const uint64_t size = rmpc_level_size(level - 1);
    const uint64_t address = rmpc_pte_address(raw, level, c_bit);
    uint64_t flags = rmpc_pte_flags(raw, level, c_bit);

    if (level == 2)
        flags = rmpc_pte_to_small(flags);
    else if (!(flags & RMPC_PTE_P))
        flags &= ~RMPC_PTE_PSE;
    flags = rmpc_pte_without_protnone(flags);

    if (run->enforce && level == 2) {
        for (unsigned i = 0; i < TABLE_ENTRIES; i++) {
            uint64_t pa = address + i * size;
            table[i] = rmpc_pte_make(pa, protect(dmap, flags, va + i * size, pa, size, 0), c_bit);
        }
    } else if (flags & RMPC_PTE_P) {
        /* consecutive frames: the address part of a present entry just grows */
        const uint64_t first = rmpc_pte_make(address, flags, c_bit);
        const unsigned shift = level == 2 ? 12 : 21;
        for (unsigned i = 0; i < TABLE_ENTRIES; i++)
            table[i] = first + ((uint64_t)i << shift);
    } else {
        for (unsigned i = 0; i < TABLE_ENTRIES; i++)
            table[i] = rmpc_pte_make(address + i * size, flags, c_bit);
    }
}

/* Split a leaf; the new table, NULL if there is no page for it. */
static uint64_t *split(struct run *run, uint64_t *entry, uint64_t va, int level)
{
    struct rmpc_dmap *dmap = run->dmap;
    const uint64_t raw = *entry;
    uint64_t page = rmpc_table_alloc(dmap, level - 1);
    uint64_t *table;

    if (page == RMPC_NO_PAGE)
        return NULL;
    table = rmpc_table_at(dmap, page);
    count_split(dmap, va, level);
    va &= ~(rmpc_level_size(level) - 1);
    fill_children(run, table, raw, va, level);
    *entry = page | RMPC_PTE_SPLIT_TABLE | dmap->config.c_bit;
    rmpc_report(dmap->events, RMPC_EVENT_SPLIT, level, 0, va, raw, page);
    flush_all(dmap);
    return table;
}

/* ---- one chunk: section 4, steps 1 to 3 ---- */

static void change_small(struct run *run, uint64_t *entry, uint64_t va)
{
    const uint64_t c_bit = run->dmap->config.c_bit;
    uint64_t pa = rmpc_pte_address(*entry, 1, c_bit);
    uint64_t flags = rmpc_pte_flags(*entry, 1, c_bit);
    uint64_t raw;

    flags = (flags & ~run->clear) | run->set;
    flags = protect(run->dmap, flags, va, pa, RMPC_PAGE_SIZE, 0);
    flags = rmpc_pte_without_protnone(flags);
    raw = rmpc_pte_make(pa, flags, c_bit);
    run->changed = run->changed || raw != *entry;
    *entry = raw;
}

/* Deal with a large leaf without splitting it, if the rules allow.  pages: of the request that lie in the leaf.
 * false: it has to be split. */
static bool change_large(struct run *run, uint64_t *entry, uint64_t va, int level, uint64_t pages)
{
    struct rmpc_dmap *dmap = run->dmap;
    const uint64_t c_bit = dmap->config.c_bit;
    const uint64_t size = rmpc_level_size(level);
    const uint64_t start = va & ~(size - 1);
    const uint64_t pa = rmpc_pte_address(*entry, level, c_bit);
    const uint64_t flags = rmpc_pte_flags(*entry, level, c_bit);
    uint64_t required = (rmpc_pte_to_small(flags) & ~run->clear) | run->set;

    required = rmpc_pte_without_protnone(rmpc_pte_to_large(required));
    if (required & RMPC_PTE_P)
        required |= RMPC_PTE_PSE;

    if (protect(dmap, flags, start, pa, size, size) != flags) { /* a */
        run->enforce = true;
        return false;
    }
    if (required == flags) /* b */
        return true;
    if (va != start || pages << RMPC_PAGE_SHIFT != size) /* c */
        return false;
    if (protect(dmap, required, start, pa, size, size) != required) /* d */
        return false;
    *entry = rmpc_pte_make(pa, required, c_bit); /* e */
    run->changed = true;
    return true;
}

/* Do small pages have to be handed to change_aliases() one by one?  Only the image's frames have aliases. */
static bool needs_alias_pages(const struct run *run)
{
    return run->check_aliases && run->dmap->config.image.text;
}

/* Change up to `pages` pages at va that one large leaf, or one table of small ones, maps.
 *   done, pfn  how many pages that were, and the first one's frame */
static int change_chunk(struct run *run, uint64_t va, uint64_t pages, uint64_t *done, uint64_t *pfn)
{
    struct rmpc_dmap *dmap = run->dmap;
    const uint64_t c_bit = dmap->config.c_bit;
    struct rmpc_walk walk = rmpc_dmap_lookup(dmap, va);

    for (;;) {
        uint64_t offset, left;
        uint64_t *table;

        if (!walk.entry || !*walk.entry) { /* step 1: the direct map may have holes */
            if (run->primary && !in_direct_map(dmap, va))
                return -RMPC_EFAULT;
            *done = 1;
            *pfn = (va - dmap->config.page_offset) >> RMPC_PAGE_SHIFT;
            return 0;
        }
        if (walk.level == 1) { /* step 2, for as many pages of this table as can go together */
            uint64_t together = needs_alias_pages(run) ? 1 : TABLE_ENTRIES - rmpc_table_index(va, 1);
            uint64_t n = 0;
            *pfn = rmpc_pte_address(*walk.entry, 1, c_bit) >> RMPC_PAGE_SHIFT;
            do {
                change_small(run, &walk.entry[n], va + (n << RMPC_PAGE_SHIFT));
                n++;
            } while (n < pages && n < together && walk.entry[n]);
            *done = n;
            return 0;
        }
        offset = va & (rmpc_level_size(walk.level) - 1);
        left = (rmpc_level_size(walk.level) - offset) >> RMPC_PAGE_SHIFT;
        if (left > pages)
            left = pages;
        if (!run->force_split) { /* step 3 */
            *pfn = (rmpc_pte_address(*walk.entry, walk.level, c_bit) + offset) >> RMPC_PAGE_SHIFT;
            if (change_large(run, walk.entry, va, walk.level, left)) {
                *done = left;
                return 0;
            }
        }
        table = split(run, walk.entry, va, walk.level); /* step 4 */
        if (!table)
            return -RMPC_ENOMEM;
        /* looking the address up again would end in the new table */
        walk.level--;
        walk.entry = &table[rmpc_table_index(va, walk.level)];
    }
}

/* ---- aliases: section 6 ---- */

static int alias_run(const struct run *primary, uint64_t va, uint64_t pages)
{
    struct run run = *primary;

    /* the direct map is never executable and the image's NX is its own: NX stays out of alias changes */
    run.set &= ~RMPC_PTE_NX;
    run.clear &= ~RMPC_PTE_NX;
    run.check_aliases = false;
    run.primary = false;
    return run_over(&run, va, pages);
}

static int change_aliases(struct run *run, uint64_t va, uint64_t pfn, uint64_t pages)
{
    struct rmpc_dmap *dmap = run->dmap;
    const struct rmpc_image *image = &dmap->config.image;

    if (!rmpc_dmap_is_mapped(dmap, pfn))
        return 0;
    if (!in_direct_map(dmap, va)) {
        int error;
        run->touched_alias = true;
        error = alias_run(run, rmpc_dmap_address(dmap, pfn), pages);
        if (error)
            return error;
    }
    if (image->text && !(va >= image->text && va < image->brk_end) && pfn >= image_frame(image, image->text) &&
        pfn <= image_frame(image, up_2m(image->brk_end) - 1)) {
        run->touched_alias = true;
        /* the image's range is known only roughly, so errors do not count */
        alias_run(run, (pfn << RMPC_PAGE_SHIFT) + RMPC_HIGH_MAP - image->phys_base, pages);
    }
    return 0;
}

/* ---- runs and requests ---- */

static int run_over(struct run *run, uint64_t va, uint64_t pages)
{
    while (pages) {
        uint64_t done = 0;
        uint64_t pfn = 0;
        int error = change_chunk(run, va, pages, &done, &pfn);

        if (!error && run->check_aliases)
            error = change_aliases(run, va, pfn, done);
        if (error)
            return error;
        pages -= done;
        va += done << RMPC_PAGE_SHIFT;
    }
    return 0;
}

static int change(struct rmpc_dmap *dmap, const struct request *request, bool final_flush)
{
    struct run run = {
        .dmap = dmap,
        .set = request->set & dmap->config.supported_mask,
        .clear = request->clear,
        .force_split = request->force_split,
        .check_aliases = request->check_aliases,
        .primary = true,
    };
    int error;

    if (!run.set && !run.clear && !run.force_split)
        return 0;
    error = run_over(&run, request->va, request->pages);
    if (!final_flush || !run.changed) /* section 4, step 6 */
        return error;
    if (error || run.touched_alias || request->pages > RMPC_FLUSH_CEILING) {
        flush_all(dmap);
    } else {
        dmap->counters.flush_pages += request->pages;
        rmpc_report(dmap->events, RMPC_EVENT_FLUSH_PAGES, 0, 0, request->va, request->pages, 0);
    }
    return error;
}

/* ---- entry points: section 7 ---- */

int rmpc_set_memory_4k(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages)
{
    struct request request = {
        .va = rmpc_dmap_address(dmap, pfn),
        .pages = pages,
        .set = dmap->config.kernel.mark_4k ? RMPC_PTE_KERNEL_4K : 0,
        .force_split = true,
        .check_aliases = true,
    };

    return rmpc_dmap_has_room(dmap, pfn, pages) ? change(dmap, &request, true) : -RMPC_EFAULT;
}

int rmpc_set_direct_map_valid_noflush(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages, bool valid)
{
    const uint64_t bits = RMPC_PTE_P | RMPC_PTE_RW;
    struct request request = {.va = rmpc_dmap_address(dmap, pfn), .pages = pages};

    if (valid)
        request.set = bits;
    else
        request.clear = bits | (dmap->config.kernel.clear_d_with_rw ? RMPC_PTE_D : 0);
    return rmpc_dmap_has_room(dmap, pfn, pages) ? change(dmap, &request, false) : -RMPC_EFAULT;
}

int rmpc_set_direct_map_invalid_noflush(struct rmpc_dmap *dmap, uint64_t pfn)
{
    return rmpc_set_direct_map_valid_noflush(dmap, pfn, 1, false);
}

int rmpc_set_direct_map_default_noflush(struct rmpc_dmap *dmap, uint64_t pfn)
{
    return rmpc_set_direct_map_valid_noflush(dmap, pfn, 1, true);
}
