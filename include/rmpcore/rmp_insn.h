/*
 * The six SNP instructions (rules: docs/rmp.md, sections 2.1 to 2.7).
 *
 * Each gives an outcome: a code, an exception, or a nested fault.  Codes are values, not errors.
 */
#ifndef RMPCORE_RMP_INSN_H
#define RMPCORE_RMP_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"
#include "event.h"
#include "outcome.h"
#include "rmp_table.h"

RMPC_BEGIN_DECLS

#define RMPC_INJECT_RUNS 64
#define RMPC_INJECT_MAX_COUNT (UINT64_C(1) << 20)

/* Codes that coming RMPUPDATEs and PSMASHes answer instead of executing, in runs, oldest first. */
struct rmpc_inject_run {
    uint32_t code; /* 0: execute normally */
    uint64_t count;
};
struct rmpc_inject {
    struct rmpc_inject_run runs[RMPC_INJECT_RUNS];
    size_t count;
};

/* Instructions executed, whatever the code; those that fault are not counted. */
struct rmpc_insn_counters {
    uint64_t rmpupdate;
    uint64_t psmash;
    uint64_t rmpread;
    uint64_t pvalidate;
    uint64_t rmpadjust;
    uint64_t rmpquery;
};

/* Who executes. */
struct rmpc_mode {
    uint32_t asid; /* current ASID; 0: the host */
    uint8_t vmpl;
    bool user; /* CPL 3 */
    bool snp;  /* the guest is one with SNP */
};

/* One processor: its mode, and what is kept of what it executes.  All zero is a host at CPL 0.  Each thread that
 * executes needs its own. */
struct rmpc_cpu {
    struct rmpc_mode mode;
    struct rmpc_insn_counters counters;
    struct rmpc_inject inject;
    const struct rmpc_events *events;
};

/* Queue a run of codes.  RMPC_ERR_ARGUMENT: code above 255, count not 1 to 2^20; RMPC_ERR_FULL. */
enum rmpc_status rmpc_cpu_inject(struct rmpc_cpu *cpu, uint64_t code, uint64_t count);

/* Instructions of the host.  rmp NULL: SNP is not enabled, every instruction is #UD.
 *   pa     RAX: system physical address in bytes
 *   input  the 16 bytes at RCX */
struct rmpc_outcome rmpc_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa,
                                   struct rmpc_rmp_state input);
struct rmpc_outcome rmpc_psmash(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa);
/*   out    the 16 bytes at RCX; written only when the code is RMPC_CODE_SUCCESS */
struct rmpc_outcome rmpc_rmpread(const struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t pa,
                                 struct rmpc_rmp_state *out);

/* What a guest's address is translated to. */
struct rmpc_page {
    uint64_t pa;  /* system physical address in bytes */
    uint64_t gpa; /* guest physical address in bytes */
    int level;    /* size of the nested mapping: 1 4K, 2 2M, 3 1G */
};

/* Instructions of a guest with SNP; the operands are the registers.
 *   page  where gva lies; NULL: the translation failed, which is #PF with error code 0 once the page is needed
 *   rcx, rdx of rmpc_rmpquery: RDX in; both out, written only when the code is RMPC_CODE_SUCCESS */
struct rmpc_outcome rmpc_pvalidate(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t rcx, uint64_t rdx,
                                   const struct rmpc_page *page);
struct rmpc_outcome rmpc_rmpadjust(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t rcx, uint64_t rdx,
                                   const struct rmpc_page *page);
struct rmpc_outcome rmpc_rmpquery(const struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t gva, uint64_t *rcx,
                                  uint64_t *rdx, const struct rmpc_page *page);

RMPC_END_DECLS

#endif
