/*
 * direct-map §1: an entry and its (address, flags) stand for each other, and a change of size loses no flag.
 *
 * For levels 1 to 5, each C-bit among bits 51:12 or none, and all 2^64 raw values and flags.  No loop.
 * Valid are: an address that is a multiple of the page's size, below 2^52, without the C-bit; flags outside the bits
 * of the address.  Flags that are not zero and have no P come with an inverted frame, and such an entry has no PSE (§1:
 * a large page loses PSE with P).  Flags of zero come with address 0 only: the empty entry.
 */
#include "rmpcore/pte.h"
#include "rules.h"

static int any_level(int highest)
{
    int level = nondet_int();

    ASSUME(level >= 1 && level <= highest);
    return level;
}

/* make() then read: address and flags come back. */
static void encode_decode(void)
{
    const uint64_t c_bit = any_c_bit(12), address = nondet_u64(), flags = nondet_u64();
    const int level = any_level(5);
    const bool large = (level == 2 || level == 3) && (flags & RMPC_PTE_PSE);
    uint64_t bits = RMPC_PTE_ADDRESS & ~c_bit;

    if (large)
        bits &= UINT64_MAX << (level == 2 ? 21 : 30);
    ASSUME(!(address & ~bits) && !(flags & bits));
    ASSUME((flags & RMPC_PTE_P) || !large);
    ASSUME(flags || !address);

    const uint64_t raw = rmpc_pte_make(address, flags, c_bit);
    CLAIM(rmpc_pte_address(raw, level, c_bit) == address, "the address comes back");
    CLAIM(rmpc_pte_flags(raw, level, c_bit) == flags, "the flags come back");
    CLAIM(((raw ^ address) & bits) == (flags && !(flags & RMPC_PTE_P) ? bits : 0), "inverted without P, and only then");
    REACHED("an entry is made");
    if (large)
        REACHED("a large one");
    if (flags && !(flags & RMPC_PTE_P))
        REACHED("an inverted one");
}

/* read then make(): the raw value comes back. */
static void decode_encode(void)
{
    const uint64_t c_bit = any_c_bit(12), raw = nondet_u64();
    const int level = any_level(5);
    const uint64_t flags = rmpc_pte_flags(raw, level, c_bit);

    ASSUME((raw & RMPC_PTE_P) || !(level == 2 || level == 3) || !(raw & RMPC_PTE_PSE));
    ASSUME(flags || !raw);
    CLAIM(rmpc_pte_make(rmpc_pte_address(raw, level, c_bit), flags, c_bit) == raw, "the raw value comes back");
    CLAIM(!(rmpc_pte_address(raw, level, c_bit) & flags & ~RMPC_PTE_ADDRESS), "no bit is both frame and flag");
    REACHED("an entry is read");
}

/* "Change of size": PAT moves between bits 7 and 12, nothing else moves. */
static void change_of_size(void)
{
    const uint64_t large = nondet_u64(), small = nondet_u64();
    const uint64_t moved = RMPC_PTE_PSE | RMPC_PTE_PAT_LARGE;

    CLAIM(!(((large ^ rmpc_pte_to_small(large)) | (small ^ rmpc_pte_to_large(small))) & ~moved), "all else is kept");
    CLAIM(!(rmpc_pte_to_small(large) & RMPC_PTE_PAT_LARGE), "small flags have no large PAT");
    CLAIM(!(rmpc_pte_to_small(large) & RMPC_PTE_PAT) == !(large & RMPC_PTE_PAT_LARGE), "PAT goes down");
    ASSUME(!(small & RMPC_PTE_PAT_LARGE)); /* bit 12 of a small entry is frame, not flag */
    CLAIM(!(rmpc_pte_to_large(small) & RMPC_PTE_PAT_LARGE) == !(small & RMPC_PTE_PAT), "PAT goes up");
    CLAIM(!(rmpc_pte_to_large(small) & RMPC_PTE_PSE), "going up sets no PSE");
    CLAIM(rmpc_pte_to_small(rmpc_pte_to_large(small) | RMPC_PTE_PSE) == small, "up and down is the identity");
    CLAIM((rmpc_pte_to_large(rmpc_pte_to_small(large)) | (large & RMPC_PTE_PSE)) == large, "down and up, but for PSE");
    REACHED("sizes change");
}

/* "Losing P": G goes, and nothing else. */
static void losing_p(void)
{
    const uint64_t flags = nondet_u64();
    const uint64_t after = rmpc_pte_without_protnone(flags);

    CLAIM(after == flags || (!(flags & RMPC_PTE_P) && after == flags - RMPC_PTE_G), "only G goes, only without P");
    CLAIM((after & RMPC_PTE_P) || !(after & RMPC_PTE_G), "no G without P");
    REACHED("P is lost");
}

int main(void)
{
    encode_decode();
    decode_encode();
    change_of_size();
    losing_p();
}
