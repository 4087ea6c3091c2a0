/*
 * direct-map §4.4a to c: a split changes no translation and no permission.
 *
 * For LEVEL 2 and 3, all 2^64 values of the large entry with what is assumed below, each of the 512 children, each
 * C-bit above the page's size or none, with and without enforcing (§4.3a): fill_children() of csrc/cpa.c itself.  Its
 * loops are not unrolled: run gives CBMC an invariant for each ("child number is right once it was written").
 *
 * Assumed of the entry (what a leaf is, §1):
 *   - with P it has PSE.  The bits between PAT_LARGE and the page's size are flags; they are reserved, and only where
 *     none of them is set does the child map what the large page mapped;
 *   - without P it has no PSE, and some flag besides G: with no flag left the children would be read as empty or not
 *     inverted.  Its frame may be any.
 * Changed on purpose: level 2 to 1 moves PAT and drops PSE; without P, G goes.  With enforcing, RW and NX may go from
 * single children (§5); that they go where they must is not proven here.
 */
#include "../csrc/cpa.c"
#include "rules.h"

#define BELOW (LEVEL - 1)

unsigned number; /* of the child that is looked at: any */
uint64_t wanted; /* its raw value, by the rules */
uint64_t yielding; /* flags that enforcing may take from it */

/* Any answer: what protect() asks only decides whether RW goes. */
struct rmpc_walk rmpc_dmap_lookup(const struct rmpc_dmap *dmap, uint64_t va)
{
    struct rmpc_walk walk;

    (void)dmap, (void)va;
    return walk;
}

int main(void)
{
    struct rmpc_dmap dmap;
    struct run run = {.dmap = &dmap, .enforce = nondet_bool()};
    uint64_t table[TABLE_ENTRIES];
    const uint64_t raw = nondet_u64(), va = nondet_u64();
    const uint64_t c_bit = any_c_bit(LEVEL == 2 ? 21 : 30);
    const uint64_t size = LEVEL == 2 ? UINT64_C(0x1000) : UINT64_C(0x200000); /* of a child */
    const bool present = raw & RMPC_PTE_P;

    dmap.config.c_bit = c_bit;
    number = nondet_unsigned();
    ASSUME(number < TABLE_ENTRIES);
    if (present)
        ASSUME(raw & RMPC_PTE_PSE);
    else
        ASSUME(!(raw & RMPC_PTE_PSE) && (raw & ~(RMPC_PTE_ADDRESS & ~c_bit) & ~RMPC_PTE_G));

    /* frame and flags of the large page, said without the core's help */
    const uint64_t bits = RMPC_PTE_ADDRESS & ~c_bit & (present ? UINT64_MAX * (size * 512) : UINT64_MAX);
    const uint64_t frame = (present ? raw : ~raw) & bits;
    uint64_t flags = raw & ~bits;
    if (LEVEL == 2)
        flags = (flags & ~UINT64_C(0x1080)) | (present ? (flags >> 12 & 1) << 7 : 0);
    if (!present)
        flags &= ~RMPC_PTE_G;
    const uint64_t child = (frame + number * size) & RMPC_PTE_ADDRESS & ~c_bit;
    wanted = flags | (present ? child : ~child & RMPC_PTE_ADDRESS & ~c_bit);
    yielding = run.enforce && LEVEL == 2 && present ? RMPC_PTE_RW | RMPC_PTE_NX : 0;

    fill_children(&run, table, raw, va, LEVEL);

    const uint64_t got = table[number];
    CLAIM(!((got ^ wanted) & ~yielding) && !(got & ~wanted & yielding), "the child is what the rules say");
    CLAIM((present && raw & (size * 512 - 1) & ~UINT64_C(0x1fff)) || rmpc_pte_address(got, BELOW, c_bit) == child,
          "translation kept: frame of the large page + i pages");
    CLAIM(!((got ^ raw) & ~yielding & (RMPC_PTE_P | RMPC_PTE_RW | RMPC_PTE_US | RMPC_PTE_PWT | RMPC_PTE_PCD | RMPC_PTE_NX |
                                       UINT64_C(0x78) << 56 | c_bit)),
          "permissions, keys, cache mode, encryption kept");
    CLAIM(!present || BELOW == 1 || (got & RMPC_PTE_PSE), "a present 2 MiB child is a leaf");
    CLAIM(!rmpc_pte_is_table(got, BELOW), "no child points to a table");
    REACHED("a table is filled");
    if (!present)
        REACHED("with inverted frames");
#if LEVEL == 2
    if (yielding)
        REACHED("and protections enforced");
#endif
}
