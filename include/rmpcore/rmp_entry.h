/*
 * The raw 16-byte RMP entry of Family 19h, Zen 3 and Zen 4 (rules: docs/rmp.md, sections 1.1 and 1.2), and
 * the architectural 16 bytes of RMPUPDATE and RMPREAD (section 1.5).
 *
 * Low quadword of the raw entry
 *   0 assigned   1 page_size (1: 2 MiB)   2 immutable   11:3 subpage_count   50:12 gpa[50:12]
 *   60:51 asid   61 vmsa   62 validated   63 lock
 * High quadword: 7:0, 15:8, 23:16, 31:24 the permission bytes of VMPL 0 to 3; the rest is not used here.
 */
#ifndef RMPCORE_RMP_ENTRY_H
#define RMPCORE_RMP_ENTRY_H

#include <assert.h>
#include <stdint.h>

#include "api.h"

RMPC_BEGIN_DECLS

#define RMPC_RMP_ASSIGNED (UINT64_C(1) << 0)
#define RMPC_RMP_SIZE_2M (UINT64_C(1) << 1)
#define RMPC_RMP_IMMUTABLE (UINT64_C(1) << 2)
#define RMPC_RMP_SUBPAGE_SHIFT 3
#define RMPC_RMP_SUBPAGE_COUNT (UINT64_C(0x1ff) << RMPC_RMP_SUBPAGE_SHIFT)
#define RMPC_RMP_GPA UINT64_C(0x0007fffffffff000)
#define RMPC_RMP_ASID_SHIFT 51
#define RMPC_RMP_ASID_MAX UINT64_C(0x3ff)
#define RMPC_RMP_ASID (RMPC_RMP_ASID_MAX << RMPC_RMP_ASID_SHIFT)
#define RMPC_RMP_VMSA (UINT64_C(1) << 61)
#define RMPC_RMP_VALIDATED (UINT64_C(1) << 62)
#define RMPC_RMP_LOCK (UINT64_C(1) << 63)

struct rmpc_rmp_entry {
    uint64_t lo;
    uint64_t hi;
};
static_assert(sizeof(struct rmpc_rmp_entry) == 16, "an RMP entry has 16 bytes");

/* The 16 bytes that RMPUPDATE reads and RMPREAD writes.  high: byte 0 assigned (bit 0), byte 1 page size
 * (bit 0) and, from RMPREAD, region status (bit 1), byte 2 immutable (bit 0), byte 3 reserved, bytes 4 to 7
 * ASID. */
struct rmpc_rmp_state {
    uint64_t gpa; /* guest physical address in bytes */
    uint64_t high;
};
static_assert(sizeof(struct rmpc_rmp_state) == 16, "RMPUPDATE reads 16 bytes");

#define RMPC_STATE_ASSIGNED (UINT64_C(1) << 0)
#define RMPC_STATE_SIZE_2M (UINT64_C(1) << 8)
#define RMPC_STATE_REGION (UINT64_C(1) << 9) /* RMPREAD: other pages of this 2 MiB region are assigned */
#define RMPC_STATE_IMMUTABLE (UINT64_C(1) << 16)
#define RMPC_STATE_ASID_SHIFT 32
#define RMPC_STATE_RESERVED UINT64_C(0x00000000fffefefe) /* high bits that are none of the input's fields */

static inline struct rmpc_rmp_state rmpc_rmp_state_make(uint64_t gpa, int assigned, int size_2m, int immutable,
                                                        uint32_t asid)
{
    struct rmpc_rmp_state state = {gpa, (uint64_t)asid << RMPC_STATE_ASID_SHIFT};
    state.high |= assigned ? RMPC_STATE_ASSIGNED : 0;
    state.high |= size_2m ? RMPC_STATE_SIZE_2M : 0;
    state.high |= immutable ? RMPC_STATE_IMMUTABLE : 0;
    return state;
}

static inline uint64_t rmpc_rmp_asid(struct rmpc_rmp_entry entry)
{
    return (entry.lo & RMPC_RMP_ASID) >> RMPC_RMP_ASID_SHIFT;
}

static inline uint64_t rmpc_rmp_subpages(struct rmpc_rmp_entry entry)
{
    return (entry.lo & RMPC_RMP_SUBPAGE_COUNT) >> RMPC_RMP_SUBPAGE_SHIFT;
}

RMPC_END_DECLS

#endif
