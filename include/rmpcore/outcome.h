/*
 * What comes of an instruction or of a memory access: a code, an exception, a nested fault, an event of the IOMMU
 * (rules: docs/rmp.md, sections 2.1 and 3.5).
 */
#ifndef RMPCORE_OUTCOME_H
#define RMPCORE_OUTCOME_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"

RMPC_BEGIN_DECLS

enum rmpc_outcome_kind {
    RMPC_OUTCOME_ALLOWED, /* an access passes */
    RMPC_OUTCOME_CODE,    /* an instruction has run; code: EAX */
    RMPC_OUTCOME_FAULT,   /* code: vector; info: error code; address: CR2 of #PF and #VC */
    RMPC_OUTCOME_NPF,     /* #VMEXIT(NPF); info: EXITINFO1; address: EXITINFO2, the guest physical address */
    RMPC_OUTCOME_INVALID, /* #VMEXIT(INVALID) */
    RMPC_OUTCOME_IOMMU,   /* code: event of the IOMMU; address: system physical address */
    RMPC_OUTCOME_END
};

/* EAX.  (rmp section 2.1) */
enum rmpc_code {
    RMPC_CODE_SUCCESS = 0,
    RMPC_CODE_FAIL_INPUT = 1,
    RMPC_CODE_FAIL_PERMISSION = 2,
    RMPC_CODE_FAIL_INUSE = 3,
    RMPC_CODE_FAIL_OVERLAP = 4,
    RMPC_CODE_FAIL_SIZEMISMATCH = 6,
    RMPC_CODE_FAIL_BADADDR = 7, /* PSMASH: the entry does not meet its requirements */
    RMPC_CODE_END
};

enum rmpc_vector { RMPC_VECTOR_UD = 6, RMPC_VECTOR_GP = 13, RMPC_VECTOR_PF = 14, RMPC_VECTOR_VC = 29 };

#define RMPC_VMEXIT_NPF 0x400
#define RMPC_VC_NOT_VALIDATED 0x404 /* error code of #VC */
#define RMPC_IOMMU_RMP_FAULT 0x0d

/* Bits of #PF's error code (31 and below) and of EXITINFO1. */
#define RMPC_FAULT_P (UINT64_C(1) << 0)
#define RMPC_FAULT_W (UINT64_C(1) << 1)
#define RMPC_FAULT_US (UINT64_C(1) << 2)
#define RMPC_FAULT_RSV (UINT64_C(1) << 3)
#define RMPC_FAULT_FETCH (UINT64_C(1) << 4)
#define RMPC_FAULT_RMP (UINT64_C(1) << 31)
#define RMPC_FAULT_FINAL (UINT64_C(1) << 32) /* at the final address */
#define RMPC_FAULT_WALK (UINT64_C(1) << 33)  /* during the guest's page walk */
#define RMPC_FAULT_ENC (UINT64_C(1) << 34)   /* the access had C = 1 */
#define RMPC_FAULT_SIZEM (UINT64_C(1) << 35) /* RMP has 2M, nested mapping or operand 4K */
#define RMPC_FAULT_VMPL (UINT64_C(1) << 36)
#define RMPC_FAULT_SSS (UINT64_C(1) << 37) /* shadow-stack attribute */

/* Why something was not allowed. */
enum rmpc_reason {
    RMPC_REASON_NONE,
    RMPC_REASON_ASSIGNED,  /* the page itself is not the hypervisor's */
    RMPC_REASON_NEIGHBOUR, /* only another page of its 2 MiB region is not, and the mapping is large */
    RMPC_REASON_IN_USE,
    RMPC_REASON_UNCOVERED,
    RMPC_REASON_OWNER, /* not assigned, or to another ASID */
    RMPC_REASON_GPA,
    RMPC_REASON_IMMUTABLE,
    RMPC_REASON_SIZE,
    RMPC_REASON_NOT_VALIDATED,
    RMPC_REASON_VMPL,
    RMPC_REASON_NOT_VMSA,
    RMPC_REASON_NULL,
    RMPC_REASON_RESERVED, /* reserved bits in the entry of the segment table */
    RMPC_REASON_NOT_PRESENT,
    RMPC_REASON_READ_ONLY,
    RMPC_REASON_END
};

struct rmpc_outcome {
    uint32_t code;
    uint8_t kind;   /* enum rmpc_outcome_kind */
    uint8_t reason; /* enum rmpc_reason; NONE for codes */
    bool cf;        /* PVALIDATE: CF, the page was as asked already */
    bool transient; /* the code came from rmpc_cpu_inject(), or from a region that another thread works in */
    uint64_t info;
    uint64_t address;
};

static inline struct rmpc_outcome rmpc_outcome_code(uint32_t code)
{
    struct rmpc_outcome outcome = {code, RMPC_OUTCOME_CODE, RMPC_REASON_NONE, false, false, 0, 0};
    return outcome;
}

static inline struct rmpc_outcome rmpc_outcome_fault(enum rmpc_vector vector, uint64_t error, uint64_t address,
                                                     enum rmpc_reason reason)
{
    struct rmpc_outcome outcome = {(uint32_t)vector, RMPC_OUTCOME_FAULT, (uint8_t)reason, false, false, error, address};
    return outcome;
}

RMPC_END_DECLS

#endif
