/*
 * For emulators: an instruction that they do not know, given as bytes and registers, is decoded and done if it is one
 * of the six SNP instructions (rules: docs/rmp.md, section 2.1).
 */
#ifndef RMPCORE_EMULATE_H
#define RMPCORE_EMULATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "rmp_insn.h"

RMPC_BEGIN_DECLS

enum rmpc_insn {
    RMPC_INSN_NONE,
    RMPC_INSN_RMPUPDATE,  /* f2 0f 01 fe */
    RMPC_INSN_PSMASH,     /* f3 0f 01 ff */
    RMPC_INSN_RMPREAD,    /* f2 0f 01 fd */
    RMPC_INSN_PVALIDATE,  /* f2 0f 01 ff */
    RMPC_INSN_RMPADJUST,  /* f3 0f 01 fe */
    RMPC_INSN_RMPQUERY,   /* f3 0f 01 fd */
    RMPC_INSN_END
};

struct rmpc_decoded {
    enum rmpc_insn insn;
    unsigned length;    /* bytes, prefixes included; 0: none of the six */
    bool short_address; /* prefix 67 */
};

/* Which instruction the bytes begin with.
 *   long_mode  REX prefixes may stand before the opcode */
struct rmpc_decoded rmpc_insn_decode(const uint8_t *bytes, size_t size, bool long_mode);

struct rmpc_registers {
    uint64_t rax;
    uint64_t rcx;
    uint64_t rdx;
    uint64_t rip;
    uint64_t rflags;
};

/* The emulator's memory.  Each returns false for an address that faults, with #PF's error code in error.
 *   read, write  16 bytes at a virtual address: operands of RMPUPDATE and RMPREAD
 *   translate    where a guest's address lies */
struct rmpc_memory {
    bool (*read)(void *user, uint64_t va, struct rmpc_rmp_state *out, uint64_t *error);
    bool (*write)(void *user, uint64_t va, const struct rmpc_rmp_state *data, uint64_t *error);
    bool (*translate)(void *user, uint64_t va, struct rmpc_page *page, uint64_t *error);
    void *user;
};

enum rmpc_cpu_mode { RMPC_MODE_LONG, RMPC_MODE_PROTECTED, RMPC_MODE_REAL }; /* 64-bit; 32-bit; real, virtual-8086 */

/*
 * Do the instruction at bytes.  A code leaves its results in the registers and moves rip on; for anything else they
 * stay as they are, and the caller delivers the outcome.
 *   decoded  out; when its insn is RMPC_INSN_NONE nothing was done, and the outcome has no meaning
 */
struct rmpc_outcome rmpc_insn_execute(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, enum rmpc_cpu_mode mode,
                                      const uint8_t *bytes, size_t size, struct rmpc_registers *registers,
                                      const struct rmpc_memory *memory, struct rmpc_decoded *decoded);

RMPC_END_DECLS

#endif
