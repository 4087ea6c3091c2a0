/*
 * The SNP instructions of the host (rules: docs/rmp.md, sections 2.1 to 2.4).
 *
 * Each gives an outcome: an exception that it raised, or the code in EAX.  Codes are values, not errors.
 */
#ifndef RMPCORE_RMP_INSN_H
#define RMPCORE_RMP_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include "rmp_table.h"

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

enum rmpc_vector { RMPC_VECTOR_NONE = 0, RMPC_VECTOR_UD = 6, RMPC_VECTOR_GP = 13 };

/* Who executes. */
struct rmpc_cpu {
    bool guest; /* the current ASID is not 0 */
    bool user;  /* CPL is not 0 */
};

struct rmpc_outcome {
    uint32_t vector; /* enum rmpc_vector; when not NONE, code has no meaning */
    uint32_t code;   /* EAX */
    bool injected;   /* the code came from rmpc_rmp_inject() */
};

/* rmp NULL: SNP is not enabled, every instruction is #UD.
 *   pa     RAX: system physical address in bytes
 *   input  the 16 bytes at RCX */
struct rmpc_outcome rmpc_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa, struct rmpc_rmp_state input);
struct rmpc_outcome rmpc_psmash(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa);
/*   out    the 16 bytes at RCX; written only when the code is RMPC_CODE_SUCCESS */
struct rmpc_outcome rmpc_rmpread(struct rmpc_rmp *rmp, struct rmpc_cpu cpu, uint64_t pa, struct rmpc_rmp_state *out);

#endif
