/*
 * direct-map §8: collapse puts back the leaf that was split, and leaves a table alone that does not fit together.
 *
 * For LEVEL 2 and 3 and each C-bit above the page's size or none.  fill_children() and whole_leaf() of csrc/cpa.c
 * themselves, on a table of 512 entries.
 *
 *   PART 1  The split (without enforcing) and then the collapse, both loops unrolled.  For all leaves that a collapse can
 *           make: P and PSE, bits of a child's number (20:13 at level 2, where bit 12 is PAT; 29:21 at level 3) 0, all
 *           else any.  The raw value comes back; but with KERNEL_4K, where the kernel minds the mark, a 2 MiB leaf does
 *           not.
 *   PART 2  Any table, any entry 1 to 511 of it: no leaf if that entry, or the first, is not what it has to be, or if the
 *           first keeps a mark that the kernel minds; with and without KERNEL_4K as an ignored flag (host §6.4).  run has
 *           the loop's invariant ("the entry fits if the loop has passed it").
 */
#include "../csrc/cpa.c"
#include "rules.h"

#define SIZE (LEVEL == 2 ? UINT64_C(0x1000) : UINT64_C(0x200000)) /* of a child */
#define NUMBER_BITS (SIZE * 511)                                  /* address bits that a child's number takes */

unsigned number; /* of the entry that is looked at: any */
bool fits;       /* it does */

/* Only enforcing asks. */
struct rmpc_walk rmpc_dmap_lookup(const struct rmpc_dmap *dmap, uint64_t va)
{
    struct rmpc_walk walk;

    (void)dmap, (void)va;
    return walk;
}

int main(void)
{
    struct rmpc_dmap dmap;
    uint64_t table[TABLE_ENTRIES];

    dmap.config.c_bit = any_c_bit(LEVEL == 2 ? 21 : 30);
#if PART == 1
    const struct run run = {.dmap = &dmap, .enforce = false};
    const uint64_t pat = LEVEL == 2 && nondet_bool() ? RMPC_PTE_PAT_LARGE : 0;
    const uint64_t raw = (nondet_u64() & ~NUMBER_BITS) | pat | RMPC_PTE_P | RMPC_PTE_PSE;

    fill_children(&run, table, raw, nondet_u64(), LEVEL);
    const uint64_t leaf = whole_leaf(&dmap, table, LEVEL, 0);
    if (LEVEL == 2 && dmap.config.kernel.mark_4k && (raw & RMPC_PTE_KERNEL_4K)) {
        CLAIM(!leaf, "KERNEL_4K stays small");
    } else {
        CLAIM(leaf == raw, "the leaf that was split");
        REACHED("the leaf comes back");
    }
#else
    const uint64_t ignored = nondet_bool() ? RMPC_PTE_KERNEL_4K : 0;
    const uint64_t leaf_bits = RMPC_PTE_P | (LEVEL == 3 ? RMPC_PTE_PSE : 0);

    number = nondet_unsigned();
    ASSUME(number >= 1 && number < TABLE_ENTRIES);
    const uint64_t first = table[0];
    const bool marked = LEVEL == 2 && dmap.config.kernel.mark_4k && (first & ~ignored & RMPC_PTE_KERNEL_4K);
    /* consecutive frames from an aligned one on: the number's bits are all that differs */
    fits = ((table[number] ^ first) & ~ignored) == number * SIZE;
    const bool possible = fits && (first & leaf_bits) == leaf_bits && !(first & NUMBER_BITS) && !marked;
    const uint64_t leaf = whole_leaf(&dmap, table, LEVEL, ignored);

    CLAIM(possible || !leaf, "no leaf for what does not fit together");
    REACHED("an answer");
    if (!possible)
        REACHED("for what does not fit");
    if (leaf)
        REACHED("a leaf");
#endif
}
