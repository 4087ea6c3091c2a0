/*
 * How the RMP's entries are read and changed when several threads work on one table.
 *
 * Every 2 MiB region has a word beside the table.  A thread that changes entries of the region owns the word
 * meanwhile, and counts it up when it is done; a thread that reads more than one quadword looks at the word before and
 * after, and reads again if it has changed.  Entries are stored in one piece of 16 bytes where the machine has such
 * stores, so that whoever reads the table past this library sees no half entry either.
 */
#ifndef RMPCORE_RMP_INTERNAL_H
#define RMPCORE_RMP_INTERNAL_H

#include "rmpcore/outcome.h"
#include "rmpcore/rmp_insn.h"
#include "rmpcore/rmp_table.h"

#if !defined(__GNUC__)
#error "needs the atomic built-ins of gcc or clang"
#endif

enum {
    WORD_BUSY = 1 << 0,     /* somebody changes the region */
    WORD_FIRMWARE = 1 << 1, /* ... and that is the firmware */
    WORD_RAW = 1 << 2,      /* an entry was stored unchecked: the subpage count may be wrong */
    WORD_STEP = 1 << 3      /* the rest counts changes, and is 0 only before the first */
};

#if defined(__SANITIZE_THREAD__)
#define PLAIN_STORES 1 /* that the sanitizer sees */
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PLAIN_STORES 1
#endif
#endif

static inline uint64_t load_quad(const uint64_t *from)
{
    /* acquire: the word of the region is looked at again afterwards */
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static inline void store_quad(uint64_t *to, uint64_t value)
{
    /* release: whoever sees it sees the word of the region owned */
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

static inline struct rmpc_rmp_entry load_entry(const struct rmpc_rmp_entry *from)
{
    return (struct rmpc_rmp_entry){load_quad(&from->lo), load_quad(&from->hi)};
}

/* Both quadwords of an entry, to count with and to store. */
typedef uint64_t quads __attribute__((vector_size(16)));

static inline void store_quads(struct rmpc_rmp_entry *to, quads value)
{
#if defined(__x86_64__) && defined(__SSE2__) && !defined(PLAIN_STORES)
    /* an aligned store of 16 bytes is one access on every processor with AVX */
    __asm__ volatile("movaps %1, %0" : "=m"(*to) : "x"(value));
#else
    store_quad(&to->hi, value[1]);
    store_quad(&to->lo, value[0]);
#endif
}

static inline void store_entry(struct rmpc_rmp_entry *to, struct rmpc_rmp_entry entry)
{
    store_quads(to, (quads){entry.lo, entry.hi});
}

/* A frame that is covered. */
struct place {
    struct rmpc_rmp_entry *entry;
    struct rmpc_rmp_entry *head; /* of the 2 MiB-aligned frame */
    uint32_t *word;              /* of the region, or NULL */
    uint64_t left;               /* entries of the segment from head on */
};

/* Where the frame's entry is; false: not covered. */
static inline bool find(const struct rmpc_rmp *rmp, uint64_t pfn, struct place *place)
{
    const struct rmpc_rmp_segment *segment = rmpc_rmp_segment_of(rmp, pfn);
    uint64_t offset = rmpc_rmp_offset(rmp, pfn);
    uint64_t first = offset & ~(RMPC_REGION_FRAMES - 1);

    if (!segment || offset >= segment->frames)
        return false;
    place->entry = &segment->entries[offset];
    place->head = &segment->entries[first];
    place->word = segment->regions ? &segment->regions[offset / RMPC_REGION_FRAMES] : NULL;
    place->left = segment->frames - first;
    return true;
}

static inline bool is_whole_region(const struct place *place)
{
    return place->left >= RMPC_REGION_FRAMES;
}

/* How many entries of a place's region are assigned, of those that are covered, the first left out: the subpage count that
 * it should have (section 1.2). */
static inline uint64_t count_others(const struct place *place)
{
    uint64_t count = 0;

    for (uint64_t i = 1; i < RMPC_REGION_FRAMES && i < place->left; i++)
        count += place->head[i].lo & RMPC_RMP_ASSIGNED;
    return count;
}

static inline bool is_in_reserved_segment(const struct rmpc_rmp *rmp, uint64_t pfn)
{
    const struct rmpc_rmp_segment *segment = rmpc_rmp_segment_of(rmp, pfn);

    return segment && segment->reserved;
}

/* Say what rmpc_rmp_passes() may go by, after a change of raw or in_use_count. */
void rmpc_set_quick(struct rmpc_rmp *rmp);

/* While waiting for another thread, which works for some hundred nanoseconds at most. */
static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Own the region; 0, or the word of the owner it has already. */
static inline uint32_t try_own(uint32_t *word, uint32_t as)
{
    uint32_t now;

    if (!word)
        return 0;
    now = __atomic_load_n(word, __ATOMIC_RELAXED);
    if (now & WORD_BUSY)
        return now;
    if (!__atomic_compare_exchange_n(word, &now, now | as, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return now | WORD_BUSY; /* somebody was faster, just now */
    return 0;
}

static inline void own(uint32_t *word, uint32_t as)
{
    while (try_own(word, as))
        relax();
}

/* How far a region's subpage count can be trusted from now on. */
enum trust { SAME_TRUST, TRUSTED, NOT_TRUSTED };

/* Let go of the region. */
static inline void disown(uint32_t *word, bool changed, enum trust trust)
{
    uint32_t now;

    if (!word)
        return;
    now = __atomic_load_n(word, __ATOMIC_RELAXED) & ~(uint32_t)(WORD_BUSY | WORD_FIRMWARE);
    if (trust != SAME_TRUST)
        now = trust == TRUSTED ? now & ~(uint32_t)WORD_RAW : now | WORD_RAW;
    if (changed && (now += WORD_STEP) < WORD_STEP)
        now += WORD_STEP; /* 0 means never changed */
    __atomic_store_n(word, now, __ATOMIC_RELEASE);
}

/* The entry of a place and that of its head, as they were at one moment. */
static inline void load_both(const struct place *place, struct rmpc_rmp_entry *entry, struct rmpc_rmp_entry *head)
{
    uint32_t before = 0;

    do {
        while (place->word && (before = __atomic_load_n(place->word, __ATOMIC_ACQUIRE)) & WORD_BUSY)
            relax();
        *head = load_entry(place->head);
        *entry = place->entry == place->head ? *head : load_entry(place->entry);
    } while (place->word && __atomic_load_n(place->word, __ATOMIC_RELAXED) != before);
}

/* Frame of an address, UINT64_MAX when the address is above all physical memory. */
static inline uint64_t frame_of(const struct rmpc_rmp *rmp, uint64_t pa)
{
    pa &= ~rmp->c_bit;
    return pa < RMPC_PHYSICAL_LIMIT ? pa >> RMPC_PAGE_SHIFT : UINT64_MAX;
}

/* Is one of these frames in use by a VMRUN? */
bool rmpc_in_use(const struct rmpc_rmp *rmp, uint64_t pfn, uint64_t count);

/* Take the next injected code; 0: none waits, or it says "execute normally". */
uint32_t rmpc_take_injected(struct rmpc_inject *inject);

/* Is the page surely the hypervisor's, for a write through a mapping of this level?  By one load of an entry; false: who
 * wants to know has to look closer. */
static inline bool is_surely_hypervisors(const struct rmpc_rmp *rmp, uint64_t pfn, int level)
{
    struct place place;

    if (rmp->in_use_count || !find(rmp, pfn, &place))
        return false;
    if (level == 1)
        return !(load_quad(&place.entry->lo) & RMPC_RMP_ASSIGNED);
    return place.word && rmp->hardware.subpage_count &&
           !(__atomic_load_n(place.word, __ATOMIC_ACQUIRE) & (WORD_RAW | WORD_BUSY)) &&
           !(load_quad(&place.head->lo) & (RMPC_RMP_ASSIGNED | RMPC_RMP_SUBPAGE_COUNT));
}

/* The entry that governs a page: the head of its region where that is an assigned 2M entry, else its own (rmp
 * section 3.1). */
struct governing {
    struct rmpc_rmp_entry entry;
    bool large;
    uint64_t offset; /* of the page in what the entry stands for, in bytes */
};

static inline struct governing govern(const struct place *place, struct rmpc_rmp_entry entry,
                                      struct rmpc_rmp_entry head)
{
    struct governing governing = {entry, false, 0};

    if ((head.lo & RMPC_RMP_ASSIGNED) && (head.lo & RMPC_RMP_SIZE_2M)) {
        governing.entry = head;
        governing.large = true;
        governing.offset = (uint64_t)(place->entry - place->head) << RMPC_PAGE_SHIFT;
    }
    return governing;
}

/* Is the private page this guest's?  NONE, or the first check of rmp section 3.2 that fails, up to "mutable". */
static inline enum rmpc_reason refusal(const struct rmpc_hardware *hardware, const struct governing *governing,
                                       uint32_t asid, uint64_t gpa)
{
    uint64_t mask = (UINT64_C(1) << hardware->gpa_bits) - 1;

    if (!(governing->entry.lo & RMPC_RMP_ASSIGNED) || !asid || rmpc_rmp_asid(governing->entry) != asid)
        return RMPC_REASON_OWNER;
    if ((((governing->entry.lo & RMPC_RMP_GPA) + governing->offset) & mask) != (gpa & ~(RMPC_PAGE_SIZE - 1)))
        return RMPC_REASON_GPA;
    if (governing->entry.lo & RMPC_RMP_IMMUTABLE)
        return RMPC_REASON_IMMUTABLE;
    return RMPC_REASON_NONE;
}

#endif
