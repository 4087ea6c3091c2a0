/*
 * The RMP's checks on memory accesses (rules: docs/rmp.md, section 3), and pages that a VMRUN has in use (3.7).
 */
#ifndef RMPCORE_RMP_CHECK_H
#define RMPCORE_RMP_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"
#include "outcome.h"
#include "rmp_table.h"

RMPC_BEGIN_DECLS

/* Whose access it is, or what the processor uses the page as. */
enum rmpc_who {
    RMPC_WHO_HOST,
    RMPC_WHO_PLAIN, /* a guest without SNP */
    RMPC_WHO_SNP,   /* a guest with SNP */
    RMPC_WHO_IOMMU,
    RMPC_WHO_PSP,
    RMPC_WHO_VMCB, /* from here on only pa, gpa and asid count */
    RMPC_WHO_AVIC,
    RMPC_WHO_VMSA_PLAIN,
    RMPC_WHO_VMSA_SNP,
    RMPC_WHO_HSAVE,
    RMPC_WHO_VMSAVE,
    RMPC_WHO_END
};

enum rmpc_access_kind {
    RMPC_READ,
    RMPC_WRITE,
    RMPC_FETCH,
    RMPC_WALK,       /* reading a page-table entry */
    RMPC_WALK_WRITE, /* setting A or D in one */
    RMPC_SHADOW_STACK,
    RMPC_ACCESS_END
};

struct rmpc_access {
    uint64_t pa;  /* system physical address in bytes */
    uint64_t gpa; /* guest physical address in bytes */
    uint64_t va;  /* virtual address, for CR2 */
    uint32_t asid;
    uint8_t who;   /* enum rmpc_who */
    uint8_t kind;  /* enum rmpc_access_kind */
    uint8_t level; /* size of the translation (of the nested one for guests): 1 4K, 2 2M, 3 1G */
    uint8_t vmpl;
    bool user;    /* CPL 3 */
    bool c; /* the guest's mapping is private */
};

/* Is there such an access on a part with so many VMPLs? */
bool rmpc_access_is_valid(const struct rmpc_access *access, uint32_t vmpls);

/* Judge an access that rmpc_access_is_valid().  rmp NULL: SNP is not enabled, all is allowed. */
struct rmpc_outcome rmpc_rmp_check(const struct rmpc_rmp *rmp, const struct rmpc_access *access);

/* The same for many.  RMPC_ERR_ARGUMENT, at the first that is not valid: its outcome and those after it are not
 * written; done is how many were. */
enum rmpc_status rmpc_rmp_check_all(const struct rmpc_rmp *rmp, const struct rmpc_access *accesses, size_t count,
                                    struct rmpc_outcome *outcomes, size_t *done);

/* Does a write of the host to this page, through a mapping of this level, pass for certain?  Inline and without a call:
 * true wherever the frame's own entry and its region's first say so; false says nothing (section 3.1). */
static inline bool rmpc_rmp_passes(const struct rmpc_rmp *rmp, uint64_t pfn, int level)
{
    const uint64_t head = pfn & ~(RMPC_REGION_FRAMES - 1);

    if (pfn >= rmp->quick[level > 1] || (__atomic_load_n(&rmp->entries[pfn].lo, __ATOMIC_RELAXED) & RMPC_RMP_ASSIGNED))
        return false;
    return level <= 1 || !(__atomic_load_n(&rmp->entries[head].lo, __ATOMIC_RELAXED) &
                           (RMPC_RMP_ASSIGNED | RMPC_RMP_SUBPAGE_COUNT));
}

/* A write of the host at va to a page of a mapping of this level (1 to 3): rmpc_rmp_check() without the detours. */
struct rmpc_outcome rmpc_rmp_check_host_write(const struct rmpc_rmp *rmp, uint64_t pfn, int level, uint64_t va);

/* The same as yes or no, for a simulator that asks at every write: as fast as the check written by hand. */
static inline bool rmpc_rmp_host_may_write(const struct rmpc_rmp *rmp, uint64_t pfn, int level)
{
    return !rmp || rmpc_rmp_passes(rmp, pfn, level) ||
           rmpc_rmp_check_host_write(rmp, pfn, level, 0).kind == RMPC_OUTCOME_ALLOWED;
}

/* Is no page of these whole 2 MiB regions assigned?  Uncovered ones are not. */
bool rmpc_rmp_is_hypervisors(const struct rmpc_rmp *rmp, uint64_t pfn, uint64_t pages);

/* VMRUN: check VMCB, AVIC page and VMSA, and mark them in use.  Addresses in bytes, page-aligned; 0: there is none.
 *   gpa, asid  of the VMSA; snp: of a guest with SNP
 * RMPC_ERR_ARGUMENT: an address that is no page's, or a VMCB that is in use; RMPC_ERR_FULL.
 *   outcome  what came of it; refused: the address that was */
enum rmpc_status rmpc_vmrun(struct rmpc_rmp *rmp, uint64_t vmcb, uint64_t vmsa, uint64_t avic, uint64_t gpa,
                            uint32_t asid, bool snp, struct rmpc_outcome *outcome, uint64_t *refused);

/* The end of a VMRUN.  RMPC_ERR_ARGUMENT: that VMCB is not in use. */
enum rmpc_status rmpc_vmexit(struct rmpc_rmp *rmp, uint64_t vmcb);

/* Put pages in use as a saved state has them, unchecked.  RMPC_ERR_ARGUMENT: a frame that cannot be, or no VMCB;
 * RMPC_ERR_FULL. */
enum rmpc_status rmpc_in_use_add(struct rmpc_rmp *rmp, struct rmpc_in_use pages);

RMPC_END_DECLS

#endif
