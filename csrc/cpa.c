/*
 * Changing page attributes ("CPA"), and the large-page split (direct-map sections 4 to 7).
 *
 * One engine does every request: a primary run over the addresses asked for and, where the request wants it,
 * alias runs over the other mappings of the same frames.
 */
#include "rmpcore/cpa.h"

#include "dmap_internal.h"

/* Entry bits of the cache mode, small form. */
#define CACHE_MODE (RMPC_PTE_PWT | RMPC_PTE_PCD | RMPC_PTE_PAT)

/* What is asked for. */
struct request {
    struct rmpc_pages pages;
    uint64_t set;
    uint64_t clear;
    bool force_split;
    bool no_aliases;
    bool no_flush;
    bool collapse;
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

static int run_over(struct run *run, const struct rmpc_pages *pages);

static void flush_all(struct rmpc_dmap *dmap)
{
    dmap->counters.flush_all++;
    rmpc_report(dmap->events, RMPC_EVENT_FLUSH_ALL, 0, 0, 0, 0, 0);
}

static bool in_direct_map(const struct rmpc_dmap *dmap, uint64_t va)
{
    return va - dmap->config.page_offset < dmap->max_pfn_mapped << RMPC_PAGE_SHIFT;
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
    if (overlap(pfn, end_pfn, rmpc_frame_of(dmap, image->start_rodata), rmpc_frame_of(dmap, image->end_rodata)))
        flags &= ~RMPC_PTE_RW;
    return flags;
}

/* ---- the split: section 4, step 4 ---- */

/* va: the address at hand, which need not be the leaf's first; its frame decides */
static void count_split(struct rmpc_dmap *dmap, uint64_t va, int level)
{
    if (!rmpc_dmap_is_mapped(dmap, rmpc_frame_of(dmap, va)) || !dmap->counters.pages[level])
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
        /* consecutive frames: a child's number goes below its large page's frame, where ORed flags may be (section 1) */
        rmpc_fill_table(table, rmpc_pte_make(address, flags, c_bit), level == 2 ? 12 : 21);
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

/* W^X: the kernel complains when a change leaves a page writable and executable, and does nothing about it. */
static void detect_w_and_x(const struct run *run, const struct rmpc_walk *walk, uint64_t va, uint64_t old, uint64_t new)
{
    const uint64_t both = RMPC_PTE_RW | RMPC_PTE_NX;

    if (((old ^ new) & both) && (new & both) == RMPC_PTE_RW && walk->rw && !walk->nx &&
        (run->dmap->config.supported_mask & RMPC_PTE_NX))
        rmpc_report(run->dmap->events, RMPC_EVENT_W_AND_X, walk->level, 0, va, old, new);
}

static void change_small(struct run *run, const struct rmpc_walk *walk, uint64_t *entry, uint64_t va)
{
    const uint64_t c_bit = run->dmap->config.c_bit;
    uint64_t pa = rmpc_pte_address(*entry, 1, c_bit);
    uint64_t old = rmpc_pte_flags(*entry, 1, c_bit);
    uint64_t new = protect(run->dmap, (old & ~run->clear) | run->set, va, pa, RMPC_PAGE_SIZE, 0);
    uint64_t raw;

    detect_w_and_x(run, walk, va, old, new);
    raw = rmpc_pte_make(pa, rmpc_pte_without_protnone(new), c_bit);
    run->changed = run->changed || raw != *entry;
    *entry = raw;
}

/* Deal with a large leaf without splitting it, if the rules allow.  pages: of the request that lie in the leaf.
 * false: it has to be split. */
static bool change_large(struct run *run, const struct rmpc_walk *walk, uint64_t va, uint64_t pages)
{
    struct rmpc_dmap *dmap = run->dmap;
    const uint64_t c_bit = dmap->config.c_bit;
    const uint64_t size = rmpc_level_size(walk->level);
    const uint64_t start = va & ~(size - 1);
    const uint64_t pa = rmpc_pte_address(*walk->entry, walk->level, c_bit);
    const uint64_t flags = rmpc_pte_flags(*walk->entry, walk->level, c_bit);
    uint64_t required = (rmpc_pte_to_small(flags) & ~run->clear) | run->set;
    uint64_t allowed;

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
    allowed = protect(dmap, required, start, pa, size, size);
    detect_w_and_x(run, walk, start, flags, allowed);
    if (allowed != required) /* d */
        return false;
    *walk->entry = rmpc_pte_make(pa, required, c_bit); /* e */
    run->changed = true;
    return true;
}

/* May frames of the kernel image, which has aliases, be among those that a run is at? */
static bool looks_for_image(const struct run *run)
{
    return run->check_aliases && run->dmap->config.image.text;
}

/* Frames that the image's mapping has, which is whole 2 MiB pages. */
static struct rmpc_frames image_frames(const struct rmpc_dmap *dmap)
{
    const struct rmpc_image *image = &dmap->config.image;

    if (!image->text)
        return (struct rmpc_frames){0, 0};
    return (struct rmpc_frames){rmpc_frame_of(dmap, image->text), rmpc_frame_of(dmap, up_2m(image->brk_end) - 1) + 1};
}

static bool is_in(struct rmpc_frames frames, uint64_t pfn)
{
    return frames.start <= pfn && pfn < frames.end;
}

/* How many of n small pages, whose entries lie side by side in one table, can be changed before any alias is: none that
 * has an alias, for the aliases of each are changed before the next page is.  Aliases have the image's frames, and all
 * that is reached by an address outside the direct map's mapped part. */
static uint64_t together(const struct run *run, const uint64_t *entry, uint64_t va, uint64_t n)
{
    const struct rmpc_dmap *dmap = run->dmap;
    const struct rmpc_frames image = image_frames(dmap);
    const uint64_t c_bit = dmap->config.c_bit;
    const uint64_t pa = rmpc_pte_address(*entry, 1, c_bit);
    const uint64_t pfn = pa >> RMPC_PAGE_SHIFT;
    uint64_t i = 1;

    if (run->check_aliases && (!in_direct_map(dmap, va | (rmpc_level_size(2) - 1)) || is_in(image, pfn)))
        return 1;
    if (!looks_for_image(run))
        return n;
    /* of frames that do not follow each other change_aliases() would know the first only; an empty entry has none */
    while (i < n && rmpc_pte_address(entry[i], 1, c_bit) == pa + (i << RMPC_PAGE_SHIFT) && !is_in(image, pfn + i))
        i++;
    return i;
}

/* Small pages that are looked at and changed in one piece. */
#define BLOCK 8

/* Change flags other than P, RW and NX in a block of entries, if that takes no more than bits set and cleared; false: it
 * does, and nothing was done.  Of entries with P it does not.  Without P, the address is turned over as long as there is
 * any flag, which NX is, and G is lost (section 1). */
static bool change_block(uint64_t *entries, uint64_t set, uint64_t clear, uint64_t *differ)
{
    typedef uint64_t pair __attribute__((vector_size(16), aligned(8), may_alias));
    pair *block = (pair *)(void *)entries;
    pair plain = {1, 1};
    pair other = {0, 0};

    for (unsigned i = 0; i < BLOCK / 2; i++)
        plain &= block[i] | (block[i] >> 63 & ~((block[i] | set) >> 8));
    if (!(plain[0] & plain[1]))
        return false;
    for (unsigned i = 0; i < BLOCK / 2; i++) {
        const pair raw = (block[i] & ~clear) | set;
        other |= raw ^ block[i];
        block[i] = raw;
    }
    *differ |= other[0] | other[1];
    return true;
}

/* Change small pages at va, n of them at most, all of one table, up to an empty entry; how many that were. */
static uint64_t change_small_pages(struct run *run, const struct rmpc_walk *walk, uint64_t va, uint64_t n)
{
    uint64_t *entry = walk->entry;
    uint64_t differ = 0;
    uint64_t i = 0;
    bool plain;

    n = together(run, entry, va, n);
    /* there is no W^X to detect, nor anything to protect(): that is for frames of the image, which together() keeps apart
     * in a run that looks for aliases */
    plain = !((run->set | run->clear) & (RMPC_PTE_P | RMPC_PTE_RW | RMPC_PTE_NX)) &&
            (!run->dmap->config.image.text || run->check_aliases);
    while (i < n && entry[i]) {
        if (plain && n - i >= BLOCK && change_block(&entry[i], run->set, run->clear, &differ)) {
            i += BLOCK;
            continue;
        }
        change_small(run, walk, &entry[i], va + (i << RMPC_PAGE_SHIFT));
        i++;
    }
    run->changed = run->changed || differ;
    return i;
}

/* Pages at va, of `pages`, that the empty slot above level 1 around va stands for; 1 for one of level 1. */
static uint64_t hole_at(const struct rmpc_dmap *dmap, uint64_t va, uint64_t pages)
{
    for (int level = dmap->config.levels; level > 1; level--) {
        const uint64_t *slot = rmpc_slot_at(dmap, va, level);
        const uint64_t left = (rmpc_level_size(level) - (va & (rmpc_level_size(level) - 1))) >> RMPC_PAGE_SHIFT;

        if (slot && !*slot)
            return left < pages ? left : pages;
    }
    return 1;
}

/* How many pages of a hole a run may pass over at once: a hole of terabytes is no reason to take minutes.  A primary run
 * ends where the direct map does, and looks at each frame that may be the image's. */
static uint64_t skip_hole_at(const struct run *run, uint64_t va, uint64_t pages)
{
    const struct rmpc_dmap *dmap = run->dmap;
    const uint64_t pfn = rmpc_frame_of(dmap, va);

    if (looks_for_image(run) && pfn < image_frames(dmap).end)
        return 1;
    if (run->primary && pages > dmap->max_pfn_mapped - pfn)
        pages = dmap->max_pfn_mapped - pfn;
    return hole_at(dmap, va, pages);
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
            *done = skip_hole_at(run, va, pages);
            *pfn = rmpc_frame_of(dmap, va);
            return 0;
        }
        if (walk.level == 1) { /* step 2, for as many pages of this table as can go together */
            left = TABLE_ENTRIES - rmpc_table_index(va, 1);
            *pfn = rmpc_pte_address(*walk.entry, 1, c_bit) >> RMPC_PAGE_SHIFT;
            *done = change_small_pages(run, &walk, va, left < pages ? left : pages);
            return 0;
        }
        offset = va & (rmpc_level_size(walk.level) - 1);
        left = (rmpc_level_size(walk.level) - offset) >> RMPC_PAGE_SHIFT;
        if (left > pages)
            left = pages;
        if (!run->force_split) { /* step 3 */
            *pfn = (rmpc_pte_address(*walk.entry, walk.level, c_bit) + offset) >> RMPC_PAGE_SHIFT;
            if (change_large(run, &walk, va, left)) {
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

static int alias_run(const struct run *primary, uint64_t va, uint64_t count)
{
    struct run run = *primary;
    struct rmpc_pages pages = {va, count, NULL};

    /* the direct map is never executable and the image's NX is its own: NX stays out of alias changes */
    run.set &= ~RMPC_PTE_NX;
    run.clear &= ~RMPC_PTE_NX;
    run.check_aliases = false;
    run.primary = false;
    return run_over(&run, &pages);
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
    if (is_in(image_frames(dmap), pfn) && !(va >= image->text && va < image->brk_end)) {
        run->touched_alias = true;
        /* the image's range is known only roughly, so errors do not count */
        alias_run(run, (pfn << RMPC_PAGE_SHIFT) + RMPC_HIGH_MAP - image->phys_base, pages);
    }
    return 0;
}

/* ---- collapse: section 8, and host section 6.4 ---- */

/* The leaf that could stand for this table, as a raw entry of `level`; 0: its entries do not fit together.
 *   ignored  flags that small entries may have or not; the leaf has none of them */
static uint64_t whole_leaf(const struct rmpc_dmap *dmap, const uint64_t *table, int level, uint64_t ignored)
{
    const uint64_t c_bit = dmap->config.c_bit;
    const int below = level - 1;
    const uint64_t address = rmpc_pte_address(table[0], below, c_bit);
    const uint64_t flags = rmpc_pte_flags(table[0], below, c_bit) & ~ignored;
    const uint64_t leaf = RMPC_PTE_P | (level == 3 ? RMPC_PTE_PSE : 0);

    if ((flags & leaf) != leaf || address % rmpc_level_size(level))
        return 0;
    if (level == 2 && dmap->config.kernel.mark_4k && (flags & RMPC_PTE_KERNEL_4K))
        return 0;
    for (unsigned i = 1; i < TABLE_ENTRIES; i++)
        if ((table[i] & ~ignored) != rmpc_pte_make(address + i * rmpc_level_size(below), flags, c_bit))
            return 0;
    return rmpc_pte_make(address, level == 2 ? rmpc_pte_to_large(flags) | RMPC_PTE_PSE : flags, c_bit);
}

static void count_collapse(struct rmpc_dmap *dmap, uint64_t va, int level)
{
    if (!rmpc_dmap_is_mapped(dmap, rmpc_frame_of(dmap, va)))
        return;
    dmap->counters.pages[level]++;
    dmap->counters.pages[level - 1] -= TABLE_ENTRIES;
    dmap->counters.collapses[level]++;
}

/* Tables that are gone, oldest first, linked by their first words. */
struct gone {
    uint64_t first;
    uint64_t *last; /* the link at the end */
};

/* Replace the table under va's entry of this level by a leaf, if its entries allow. */
static bool collapse(struct rmpc_dmap *dmap, uint64_t va, int level, uint64_t ignored, struct gone *gone)
{
    uint64_t *slot;
    uint64_t *table;
    uint64_t page, leaf;

    va &= ~(rmpc_level_size(level) - 1);
    slot = rmpc_slot_at(dmap, va, level);
    if (!slot || !rmpc_pte_is_table(*slot, level))
        return false;
    page = *slot & RMPC_PTE_ADDRESS & ~dmap->config.c_bit;
    table = rmpc_table_at(dmap, *slot);
    leaf = table ? whole_leaf(dmap, table, level, ignored) : 0;
    if (!leaf)
        return false;
    count_collapse(dmap, va, level);
    *slot = leaf;
    rmpc_report(dmap->events, RMPC_EVENT_COLLAPSE, level, 0, va, leaf, page);
    *gone->last = page;
    table[0] = RMPC_NO_PAGE;
    gone->last = table;
    return true;
}

/* The flush after collapses; then the tables' pages are given back. */
static void give_back(struct rmpc_dmap *dmap, const struct gone *gone)
{
    uint64_t page = gone->first;

    if (page == RMPC_NO_PAGE)
        return;
    flush_all(dmap);
    while (page != RMPC_NO_PAGE) {
        const uint64_t next = *rmpc_table_at(dmap, page);

        dmap->counters.table_pages--;
        rmpc_report(dmap->events, RMPC_EVENT_TABLE_FREE, 0, 0, page, 0, 0);
        rmpc_mem_free(dmap->mem, page);
        page = next;
    }
}

/* Put large pages back together in all that a call has touched. */
static void collapse_pages(struct rmpc_dmap *dmap, const struct rmpc_pages *pages)
{
    const uint64_t span = rmpc_level_size(2);
    const uint64_t first = pages->va & ~(span - 1);
    const uint64_t spans = pages->addresses
                               ? pages->count
                               : (pages->va - first + (pages->count << RMPC_PAGE_SHIFT) + span - 1) / span;
    struct gone gone = {RMPC_NO_PAGE, &gone.first};

    for (uint64_t i = 0; i < spans; i++) {
        uint64_t va = pages->addresses ? pages->addresses[i] : first + i * span;
        if (collapse(dmap, va, 2, 0, &gone) && dmap->config.large_level == 3)
            collapse(dmap, va, 3, 0, &gone);
    }
    give_back(dmap, &gone);
}

void rmpc_dmap_restore(struct rmpc_dmap *dmap, uint64_t pfn,
                       bool (*may_restore)(const void *user, uint64_t pfn, uint64_t pages), const void *user)
{
    const uint64_t va = rmpc_dmap_address(dmap, pfn);
    const uint64_t mark = dmap->config.kernel.mark_4k ? RMPC_PTE_KERNEL_4K : 0;
    struct gone gone = {RMPC_NO_PAGE, &gone.first};

    for (int level = 2; level == 2 || (level == 3 && dmap->config.large_level == 3); level++) {
        const uint64_t pages = rmpc_level_size(level) >> RMPC_PAGE_SHIFT;
        const uint64_t *slot = rmpc_slot_at(dmap, va, level);

        if (!slot)
            break;
        if (!rmpc_pte_is_table(*slot, level))
            continue;
        /* where the kernel chose small pages at boot, it had its reasons */
        if ((*slot & ~(RMPC_PTE_ADDRESS & ~dmap->config.c_bit)) != (RMPC_PTE_SPLIT_TABLE | dmap->config.c_bit) ||
            !may_restore(user, pfn & ~(pages - 1), pages) || !collapse(dmap, va, level, level == 2 ? mark : 0, &gone))
            break;
    }
    give_back(dmap, &gone);
}

/* ---- flushes: section 4, step 6 ---- */

static void flush_cache(struct rmpc_dmap *dmap, uint64_t va, uint64_t pages)
{
    if (pages) {
        dmap->counters.flush_cache += pages;
        rmpc_report(dmap->events, RMPC_EVENT_FLUSH_CACHE, 0, 0, va, pages, 0);
    }
}

static bool is_present(const struct rmpc_walk *walk)
{
    return walk->entry && (*walk->entry & RMPC_PTE_P);
}

/* Flush the cache lines of those pages that are present. */
static void flush_present(struct rmpc_dmap *dmap, const struct rmpc_pages *pages)
{
    uint64_t run = 0; /* present pages just before the one at hand */
    uint64_t step;

    for (uint64_t i = 0; i < pages->count; i += step) {
        uint64_t va = pages->addresses ? pages->addresses[i] : pages->va + (i << RMPC_PAGE_SHIFT);
        struct rmpc_walk walk = rmpc_dmap_lookup(dmap, va);

        step = 1;
        if (pages->addresses) {
            flush_cache(dmap, va, is_present(&walk));
            continue;
        }
        if (walk.entry) { /* all pages of a leaf at once */
            uint64_t size = rmpc_level_size(walk.level);
            step = (size - (va & (size - 1))) >> RMPC_PAGE_SHIFT;
            if (step > pages->count - i)
                step = pages->count - i;
        } else {
            step = hole_at(dmap, va, pages->count - i);
        }
        if (is_present(&walk)) {
            run += step;
        } else {
            flush_cache(dmap, va - (run << RMPC_PAGE_SHIFT), run);
            run = 0;
        }
    }
    flush_cache(dmap, pages->va + ((pages->count - run) << RMPC_PAGE_SHIFT), run);
}

static void flush_pages(struct rmpc_dmap *dmap, const struct rmpc_pages *pages)
{
    const uint64_t events = pages->addresses ? pages->count : 1;

    dmap->counters.flush_pages += pages->count;
    for (uint64_t i = 0; i < events; i++)
        rmpc_report(dmap->events, RMPC_EVENT_FLUSH_PAGES, 0, 0, pages->addresses ? pages->addresses[i] : pages->va,
                    pages->addresses ? 1 : pages->count, 0);
}

static void final_flush(struct run *run, const struct rmpc_pages *pages, int error)
{
    struct rmpc_dmap *dmap = run->dmap;
    const bool cache = run->set & CACHE_MODE;

    if (error || run->touched_alias || pages->count > RMPC_FLUSH_CEILING)
        flush_all(dmap);
    else
        flush_pages(dmap, pages);
    if (cache && error) {
        dmap->counters.flush_cache_all++;
        rmpc_report(dmap->events, RMPC_EVENT_FLUSH_CACHE_ALL, 0, 0, 0, 0, 0);
    } else if (cache) {
        flush_present(dmap, pages);
    }
}

/* ---- runs and requests ---- */

static int run_over(struct run *run, const struct rmpc_pages *pages)
{
    for (uint64_t i = 0; i < pages->count;) {
        uint64_t va = pages->addresses ? pages->addresses[i] : pages->va + (i << RMPC_PAGE_SHIFT);
        uint64_t done = 0;
        uint64_t pfn = 0;
        int error = change_chunk(run, va, pages->addresses ? 1 : pages->count - i, &done, &pfn);

        if (!error && run->check_aliases)
            error = change_aliases(run, va, pfn, done);
        if (error)
            return error;
        i += done;
    }
    return 0;
}

/* Do the pages lie where the model has mappings? */
static bool are_modelled(const struct rmpc_dmap *dmap, const struct rmpc_pages *pages)
{
    const uint64_t runs = pages->addresses ? pages->count : 1;
    const uint64_t count = pages->addresses ? 1 : pages->count;

    for (uint64_t i = 0; i < runs; i++) {
        uint64_t va = pages->addresses ? pages->addresses[i] : pages->va;
        uint64_t offset = va - (va >= RMPC_HIGH_MAP ? RMPC_HIGH_MAP : dmap->config.page_offset);
        uint64_t size = va >= RMPC_HIGH_MAP ? RMPC_HIGH_SIZE : rmpc_dmap_limit(dmap);
        if (offset > size || count > (size - offset) >> RMPC_PAGE_SHIFT)
            return false;
    }
    return true;
}

static int change(struct rmpc_dmap *dmap, const struct request *request)
{
    struct run run = {
        .dmap = dmap,
        .set = request->set & dmap->config.supported_mask,
        .clear = request->clear,
        .force_split = request->force_split,
        .check_aliases = !request->no_aliases,
        .primary = true,
    };
    int error;

    if (!are_modelled(dmap, &request->pages))
        return -RMPC_EFAULT;
    if (!run.set && !run.clear && !run.force_split)
        return 0;
    if (!dmap->config.kernel.primary_always) {
        /* before 6.2, NX alone was not checked for aliases, and a run without that check was no primary run */
        run.check_aliases = run.check_aliases && (run.set | run.clear) != RMPC_PTE_NX;
        run.primary = run.check_aliases;
    }
    error = run_over(&run, &request->pages);
    if (!request->no_flush && run.changed)
        final_flush(&run, &request->pages, error);
    if (request->collapse && run.changed && !error)
        collapse_pages(dmap, &request->pages);
    return error;
}

/* ---- entry points: section 7 ---- */

/* PWT, PCD and PAT of a cache mode, by its place in the kernel's table. */
enum cache_mode { WB, WC, UC_MINUS };

int rmpc_set_memory(struct rmpc_dmap *dmap, enum rmpc_set_memory call, struct rmpc_pages pages)
{
    const struct rmpc_dmap_config *config = &dmap->config;
    struct request request = {.pages = pages};
    int error;

    switch (call) {
    case RMPC_SET_MEMORY_4K:
        request.set = config->kernel.mark_4k ? RMPC_PTE_KERNEL_4K : 0;
        request.force_split = true;
        break;
    case RMPC_SET_MEMORY_RO:
        request.clear = RMPC_PTE_RW | (config->kernel.clear_d_with_rw ? RMPC_PTE_D : 0);
        break;
    case RMPC_SET_MEMORY_RW:
        request.set = RMPC_PTE_RW;
        break;
    case RMPC_SET_MEMORY_ROX:
        request.clear = RMPC_PTE_RW | RMPC_PTE_D | RMPC_PTE_NX;
        request.collapse = config->kernel.collapse;
        break;
    case RMPC_SET_MEMORY_NX:
        request.set = RMPC_PTE_NX;
        break;
    case RMPC_SET_MEMORY_X:
        request.clear = RMPC_PTE_NX;
        break;
    case RMPC_SET_MEMORY_NP_NOALIAS:
        request.no_aliases = true;
        request.clear = RMPC_PTE_P;
        break;
    case RMPC_SET_MEMORY_NP:
        request.clear = RMPC_PTE_P;
        break;
    case RMPC_SET_MEMORY_P:
        request.set = RMPC_PTE_P;
        break;
    case RMPC_SET_MEMORY_GLOBAL:
        request.set = RMPC_PTE_G;
        break;
    case RMPC_SET_MEMORY_NONGLOBAL:
        request.clear = RMPC_PTE_G;
        break;
    case RMPC_SET_MEMORY_UC:
        request.set = config->cache_modes[UC_MINUS];
        break;
    case RMPC_SET_MEMORY_WC: /* first uncached, so that no page is ever mapped both ways */
        request.set = config->cache_modes[UC_MINUS];
        error = change(dmap, &request);
        if (error)
            return error;
        request.set = config->cache_modes[WC];
        request.clear = CACHE_MODE;
        break;
    case RMPC_SET_MEMORY_WB:
        request.clear = CACHE_MODE;
        break;
    case RMPC_SET_MEMORY_ENCRYPTED:
        request.set = config->c_bit;
        break;
    case RMPC_SET_MEMORY_DECRYPTED:
        request.clear = config->c_bit;
        break;
    case RMPC_SET_MEMORY_END:
    default:
        return -RMPC_EFAULT;
    }
    return change(dmap, &request);
}

int rmpc_change_page_attr(struct rmpc_dmap *dmap, struct rmpc_pages pages, uint64_t set, uint64_t clear)
{
    struct request request = {.pages = pages, .set = set, .clear = clear};

    if ((set | clear) & RMPC_PTE_ADDRESS & ~dmap->config.c_bit)
        return -RMPC_EFAULT;
    return change(dmap, &request);
}

int rmpc_set_direct_map_valid_noflush(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages, bool valid)
{
    const uint64_t bits = RMPC_PTE_P | RMPC_PTE_RW;
    struct request request = {
        .pages = rmpc_dmap_pages(dmap, pfn, pages),
        .no_aliases = true,
        .no_flush = true,
    };

    if (valid)
        request.set = bits;
    else
        request.clear = bits | (dmap->config.kernel.clear_d_with_rw ? RMPC_PTE_D : 0);
    return rmpc_dmap_has_room(dmap, pfn, pages) ? change(dmap, &request) : -RMPC_EFAULT;
}

int rmpc_set_direct_map_invalid_noflush(struct rmpc_dmap *dmap, uint64_t pfn)
{
    return rmpc_set_direct_map_valid_noflush(dmap, pfn, 1, false);
}

int rmpc_set_direct_map_default_noflush(struct rmpc_dmap *dmap, uint64_t pfn)
{
    return rmpc_set_direct_map_valid_noflush(dmap, pfn, 1, true);
}
