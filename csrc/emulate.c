/* Decoding the six SNP instructions, and their registers and flags (rmp section 2.1). */
#include "rmpcore/emulate.h"

#include "rmp_internal.h"

#define MOST_BYTES 15

#define CF (UINT64_C(1) << 0)
#define PF (UINT64_C(1) << 2)
#define AF (UINT64_C(1) << 4)
#define ZF (UINT64_C(1) << 6)
#define SF (UINT64_C(1) << 7)
#define OF (UINT64_C(1) << 11)

static enum rmpc_insn by_opcode(uint8_t prefix, uint8_t last)
{
    switch (last) {
    case 0xfd:
        return prefix == 0xf2 ? RMPC_INSN_RMPREAD : RMPC_INSN_RMPQUERY;
    case 0xfe:
        return prefix == 0xf2 ? RMPC_INSN_RMPUPDATE : RMPC_INSN_RMPADJUST;
    case 0xff:
        return prefix == 0xf2 ? RMPC_INSN_PVALIDATE : RMPC_INSN_PSMASH;
    default:
        return RMPC_INSN_NONE;
    }
}

static bool is_prefix(uint8_t byte)
{
    return byte == 0x26 || byte == 0x2e || byte == 0x36 || byte == 0x3e || (byte >= 0x64 && byte <= 0x67) ||
           byte == 0xf2 || byte == 0xf3;
}

struct rmpc_decoded rmpc_insn_decode(const uint8_t *bytes, size_t size, bool long_mode)
{
    struct rmpc_decoded decoded = {RMPC_INSN_NONE, 0, false};
    uint8_t repeat = 0; /* the last of f2 and f3 */
    size_t i = 0;

    for (; i < size && is_prefix(bytes[i]); i++) {
        decoded.short_address |= bytes[i] == 0x67;
        if (bytes[i] == 0xf2 || bytes[i] == 0xf3)
            repeat = bytes[i];
    }
    if (long_mode && i < size && (bytes[i] & 0xf0) == 0x40)
        i++;
    if (repeat && i < MOST_BYTES - 2 && i + 2 < size && bytes[i] == 0x0f && bytes[i + 1] == 0x01)
        decoded.insn = by_opcode(repeat, bytes[i + 2]);
    if (decoded.insn != RMPC_INSN_NONE)
        decoded.length = (unsigned)i + 3;
    return decoded;
}

/* Flags follow EAX as those of a logical operation do; SF stays clear, codes are below 256.  CF is PVALIDATE's alone. */
static uint64_t flags_after(uint64_t rflags, uint32_t eax)
{
    uint32_t low = eax & 0xff;

    low ^= low >> 4;
    low ^= low >> 2;
    low ^= low >> 1;
    rflags &= ~(PF | AF | ZF | SF | OF);
    return rflags | (low & 1 ? 0 : PF) | (eax ? 0 : ZF);
}

static struct rmpc_outcome emulate_rmpupdate(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t rax, uint64_t address,
                                             const struct rmpc_memory *memory)
{
    struct rmpc_rmp_state input = {0, 0};
    const bool injected = cpu->inject.count && cpu->inject.runs[0].code;
    uint64_t error = 0;

    /* rows 0 and 1 come before the operand, row 2; an injected code comes before both */
    if (rmp && !cpu->mode.user && !cpu->mode.asid && !injected &&
        !memory->read(memory->user, address, &input, &error)) {
        rmpc_take_injected(&cpu->inject); /* a 0, if anything: it has been used up (section 2.1, inject) */
        return rmpc_outcome_fault(RMPC_VECTOR_PF, error, address, RMPC_REASON_NONE);
    }
    return rmpc_rmpupdate(rmp, cpu, rax, input);
}

static struct rmpc_outcome emulate_rmpread(const struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, uint64_t rax,
                                           uint64_t address, const struct rmpc_memory *memory)
{
    struct rmpc_cpu unseen = {.mode = cpu->mode};
    struct rmpc_rmp_state output;
    struct rmpc_outcome outcome = rmpc_rmpread(rmp, &unseen, rax, &output);
    uint64_t error = 0;

    if (outcome.kind == RMPC_OUTCOME_CODE && outcome.code == RMPC_CODE_SUCCESS &&
        !memory->write(memory->user, address, &output, &error))
        return rmpc_outcome_fault(RMPC_VECTOR_PF, error, address, RMPC_REASON_NONE);
    /* only now: one that faults is neither counted nor an event */
    return rmpc_rmpread(rmp, cpu, rax, &output);
}

static struct rmpc_outcome emulate_guests(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, enum rmpc_insn insn, uint64_t gva,
                                          struct rmpc_registers *registers, const struct rmpc_memory *memory)
{
    uint64_t error = 0;
    struct rmpc_page found;
    const struct rmpc_page *page = memory->translate(memory->user, gva, &found, &error) ? &found : NULL;
    struct rmpc_outcome outcome;

    if (insn == RMPC_INSN_PVALIDATE)
        outcome = rmpc_pvalidate(rmp, cpu, gva, registers->rcx, registers->rdx, page);
    else if (insn == RMPC_INSN_RMPADJUST)
        outcome = rmpc_rmpadjust(rmp, cpu, gva, registers->rcx, registers->rdx, page);
    else
        outcome = rmpc_rmpquery(rmp, cpu, gva, &registers->rcx, &registers->rdx, page);
    if (!page && outcome.kind == RMPC_OUTCOME_FAULT && outcome.code == RMPC_VECTOR_PF)
        outcome.info = error;
    return outcome;
}

struct rmpc_outcome rmpc_insn_execute(struct rmpc_rmp *rmp, struct rmpc_cpu *cpu, enum rmpc_cpu_mode mode,
                                      const uint8_t *bytes, size_t size, struct rmpc_registers *registers,
                                      const struct rmpc_memory *memory, struct rmpc_decoded *decoded)
{
    struct rmpc_outcome outcome = rmpc_outcome_fault(RMPC_VECTOR_UD, 0, 0, RMPC_REASON_NONE);
    uint64_t cut = UINT64_MAX;

    *decoded = rmpc_insn_decode(bytes, size, mode == RMPC_MODE_LONG);
    if (mode == RMPC_MODE_REAL || (mode == RMPC_MODE_PROTECTED && decoded->insn != RMPC_INSN_PVALIDATE))
        return outcome;
    if (decoded->short_address || mode == RMPC_MODE_PROTECTED)
        cut = UINT32_MAX;
    switch (decoded->insn) {
    case RMPC_INSN_RMPUPDATE:
        outcome = emulate_rmpupdate(rmp, cpu, registers->rax, registers->rcx & cut, memory);
        break;
    case RMPC_INSN_PSMASH:
        outcome = rmpc_psmash(rmp, cpu, registers->rax);
        break;
    case RMPC_INSN_RMPREAD:
        outcome = emulate_rmpread(rmp, cpu, registers->rax, registers->rcx & cut, memory);
        break;
    case RMPC_INSN_PVALIDATE:
    case RMPC_INSN_RMPADJUST:
    case RMPC_INSN_RMPQUERY:
        outcome = emulate_guests(rmp, cpu, decoded->insn, registers->rax & cut, registers, memory);
        break;
    case RMPC_INSN_NONE:
    case RMPC_INSN_END:
        break;
    }
    if (outcome.kind != RMPC_OUTCOME_CODE)
        return outcome;
    registers->rax = outcome.code;
    registers->rflags = flags_after(registers->rflags, outcome.code);
    if (decoded->insn == RMPC_INSN_PVALIDATE)
        registers->rflags = (registers->rflags & ~CF) | (outcome.cf ? CF : 0);
    registers->rip += decoded->length;
    if (mode == RMPC_MODE_PROTECTED)
        registers->rip &= UINT32_MAX;
    return outcome;
}
