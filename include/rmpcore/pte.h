/*
 * Page-table entries of x86-64 as Linux uses them for its direct map (rules: docs/direct-map.md, section 1).
 *
 * Levels: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB, 4 = 512 GiB, 5 = 256 TiB.  "Small form" is the layout of flags
 * at level 1, "large form" that of a leaf at level 2 or 3.  c_bit is the memory-encryption bit as a mask
 * (0: none): it lies among the address bits, but counts as a flag.
 */
#ifndef RMPCORE_PTE_H
#define RMPCORE_PTE_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"

RMPC_BEGIN_DECLS

#define RMPC_PTE_P (UINT64_C(1) << 0)
#define RMPC_PTE_RW (UINT64_C(1) << 1)
#define RMPC_PTE_US (UINT64_C(1) << 2)
#define RMPC_PTE_PWT (UINT64_C(1) << 3)
#define RMPC_PTE_PCD (UINT64_C(1) << 4)
#define RMPC_PTE_A (UINT64_C(1) << 5)
#define RMPC_PTE_D (UINT64_C(1) << 6)
#define RMPC_PTE_PSE (UINT64_C(1) << 7)        /* levels 2 and 3: this is a leaf */
#define RMPC_PTE_PAT (UINT64_C(1) << 7)        /* level 1: the same bit */
#define RMPC_PTE_G (UINT64_C(1) << 8)          /* without P the bit would mean PROTNONE */
#define RMPC_PTE_KERNEL_4K (UINT64_C(1) << 11) /* software bit 3, from Linux 6.15: keep this page small */
#define RMPC_PTE_PAT_LARGE (UINT64_C(1) << 12) /* levels 2 and 3 with PSE */
#define RMPC_PTE_ADDRESS UINT64_C(0x000ffffffffff000)
#define RMPC_PTE_NX (UINT64_C(1) << 63)

#define RMPC_PTE_KERNEL UINT64_C(0x8000000000000163)      /* NX G D A RW P, small form */
#define RMPC_PTE_BOOT_TABLE UINT64_C(0x067)               /* flags of a pointer to a table hung at boot */
#define RMPC_PTE_SPLIT_TABLE UINT64_C(0x063)              /* ... and by a split */

/* Bytes that one entry of a level maps. */
static inline uint64_t rmpc_level_size(int level)
{
    return UINT64_C(1) << (12 + 9 * (level - 1));
}

/* Does an entry of this level point to a table?  (A large page made not-present has lost PSE too: it is
 * a leaf all the same.)  Bit 7 is PSE at levels 2 and 3 only. */
static inline bool rmpc_pte_is_table(uint64_t raw, int level)
{
    return level > 1 && (raw & RMPC_PTE_P) && (level > 3 || !(raw & RMPC_PTE_PSE));
}

/* The address bits of an entry: cut to the level's size for a leaf with PSE, all of 51:12 otherwise. */
static inline uint64_t rmpc_pte_address_mask(uint64_t raw, int level, uint64_t c_bit)
{
    uint64_t mask = RMPC_PTE_ADDRESS & ~c_bit;
    if ((level == 2 || level == 3) && (raw & RMPC_PTE_PSE))
        mask &= ~(rmpc_level_size(level) - 1);
    return mask;
}

static inline uint64_t rmpc_pte_flags(uint64_t raw, int level, uint64_t c_bit)
{
    return raw & ~rmpc_pte_address_mask(raw, level, c_bit);
}

/* Physical address in an entry.  A non-zero entry without P stores it inverted. */
static inline uint64_t rmpc_pte_address(uint64_t raw, int level, uint64_t c_bit)
{
    uint64_t bits = raw && !(raw & RMPC_PTE_P) ? ~raw : raw;
    return bits & rmpc_pte_address_mask(raw, level, c_bit);
}

/* Entry with this address and these flags.  The address is inverted when there are flags without P, and
 * cut to bits 51:12 whatever the level: an inverted large leaf keeps ones below its size. */
static inline uint64_t rmpc_pte_make(uint64_t address, uint64_t flags, uint64_t c_bit)
{
    if (flags && !(flags & RMPC_PTE_P))
        address = ~address;
    return (address & RMPC_PTE_ADDRESS & ~c_bit) | flags;
}

static inline uint64_t rmpc_pte_to_small(uint64_t flags)
{
    uint64_t pat = flags & RMPC_PTE_PAT_LARGE ? RMPC_PTE_PAT : 0;
    return (flags & ~(RMPC_PTE_PSE | RMPC_PTE_PAT_LARGE)) | pat;
}

static inline uint64_t rmpc_pte_to_large(uint64_t flags)
{
    uint64_t pat = flags & RMPC_PTE_PAT ? RMPC_PTE_PAT_LARGE : 0;
    return (flags & ~RMPC_PTE_PAT) | pat;
}

/* Flags that lose P lose G too. */
static inline uint64_t rmpc_pte_without_protnone(uint64_t flags)
{
    return flags & RMPC_PTE_P ? flags : flags & ~RMPC_PTE_G;
}

RMPC_END_DECLS

#endif
