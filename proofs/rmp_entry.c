/*
 * rmp §1.1, §1.5 and §2.2 "What is written": the forms of an RMP entry stand for each other.
 *
 * For all 2^128 raw entries, all 2^128 inputs of RMPUPDATE, each part (Milan, Genoa, Turin).  No loop.
 * Valid input (what RMPUPDATE lets through, rows 3 and 4): ASID up to 0x3ff; without assigned neither immutable nor an
 * ASID.  The inline functions of include/rmpcore/rmp_entry.h and updated() of csrc/rmp_insn.c themselves; what
 * rmpc_rmpread() makes of the fields is its one call of rmpc_rmp_state_make(), written here again.
 */
#include "../csrc/rmp_table.c"
#include "../csrc/rmp_insn.c"
#include "rules.h"

void *rmpc_mem_at(const struct rmpc_mem *mem, uint64_t pa, uint64_t size)
{
    (void)mem, (void)pa, (void)size;
    return NULL;
}

/* §1.1: "All 64 bits have a name": fields cover the low quadword, each bit once. */
static void raw_fields(void)
{
    const struct rmpc_rmp_entry entry = {nondet_u64(), nondet_u64()};
    const uint64_t masks[] = {RMPC_RMP_ASSIGNED, RMPC_RMP_SIZE_2M, RMPC_RMP_IMMUTABLE, RMPC_RMP_SUBPAGE_COUNT, RMPC_RMP_GPA,
                              RMPC_RMP_ASID,     RMPC_RMP_VMSA,    RMPC_RMP_VALIDATED, RMPC_RMP_LOCK};
    uint64_t seen = 0, sum = 0;

    for (unsigned i = 0; i < sizeof(masks) / sizeof(*masks); i++) {
        CLAIM(!(seen & masks[i]), "no bit is in two fields");
        seen |= masks[i];
        sum += entry.lo & masks[i];
    }
    CLAIM(seen == UINT64_MAX && sum == entry.lo, "every bit is in one");
    CLAIM(rmpc_rmp_asid(entry) == (entry.lo >> 51 & 0x3ff), "ASID is bits 60:51");
    CLAIM(rmpc_rmp_subpages(entry) == (entry.lo >> 3 & 0x1ff), "the count is bits 11:3");
    REACHED("fields");
}

/* §1.5: the architectural form, both ways. */
static void architectural(void)
{
    const uint64_t gpa = nondet_u64(), high = nondet_u64();
    const int assigned = nondet_int(), size_2m = nondet_int(), immutable = nondet_int();
    const uint32_t asid = nondet_unsigned();
    const struct rmpc_rmp_state state = rmpc_rmp_state_make(gpa, assigned, size_2m, immutable, asid);

    CLAIM(state.gpa == gpa && state.high >> 32 == asid, "gpa and ASID come back");
    CLAIM((state.high & 0xff) == (assigned != 0) && (state.high >> 8 & 0xff) == (size_2m != 0) &&
              (state.high >> 16 & 0xff) == (immutable != 0),
          "so do the three flags");
    CLAIM(!(state.high & RMPC_STATE_RESERVED), "reserved bits are 0");
    CLAIM(rmpc_rmp_state_make(gpa, (high & 1) != 0, (high >> 8 & 1) != 0, (high >> 16 & 1) != 0, (uint32_t)(high >> 32)).high ==
              (high & ~RMPC_STATE_RESERVED),
          "16 bytes without reserved bits come back");
    REACHED("16 bytes");
}

/* §2.2: what an update puts into the raw form is what RMPREAD gives. */
static void update_read(void)
{
    struct rmpc_hardware hardware;
    const struct rmpc_rmp_entry old = {nondet_u64(), nondet_u64()};
    const struct rmpc_rmp_state input = {nondet_u64(), nondet_u64()};
    const unsigned part = nondet_unsigned();
    const uint64_t asid = input.high >> 32;
    const bool assigned = input.high & 1, large = input.high >> 8 & 1, immutable = input.high >> 16 & 1;

    ASSUME(part < RMPC_PART_END && rmpc_hardware_init(&hardware, (enum rmpc_part)part) == RMPC_OK);
    ASSUME(asid <= 0x3ff && (assigned || (!immutable && !asid)));
    const struct rmpc_rmp_entry new = updated(&hardware, old, input);
    const uint64_t gpa = input.gpa & (part == RMPC_PART_MILAN ? UINT64_C(0xfffffffff000) : UINT64_C(0x7fffffffff000));
    const struct rmpc_rmp_state out =
        rmpc_rmp_state_make(new.lo & RMPC_RMP_GPA, (new.lo & RMPC_RMP_ASSIGNED) != 0, (new.lo & RMPC_RMP_SIZE_2M) != 0,
                            (new.lo & RMPC_RMP_IMMUTABLE) != 0, (uint32_t)rmpc_rmp_asid(new));
    CLAIM(out.gpa == gpa && out.high >> 32 == asid, "gpa and ASID come out");
    CLAIM((out.high & 1) == assigned && (out.high >> 16 & 1) == immutable, "assigned and immutable too");
    CLAIM((out.high >> 8 & 1) == (assigned && large), "the size, 0 where the page is not assigned");
    CLAIM(new.lo >> 63 == immutable && !rmpc_rmp_subpages(new), "lock follows immutable, the count is the caller's");

    const bool same = asid && (old.lo & 1) == assigned && (old.lo >> 1 & 1) == large && (old.lo >> 51 & 0x3ff) == asid &&
                      (old.lo & UINT64_C(0x7fffffffff000)) == gpa;
    const uint64_t validated_vmsa = UINT64_C(3) << 61;
    CLAIM((new.lo & validated_vmsa) == (same ? old.lo & validated_vmsa : 0), "validated and vmsa: kept or reset");
    CLAIM(new.hi == (same ? old.hi : part == RMPC_PART_MILAN ? 0x0f : 0x1f), "permissions: kept or reset");
    REACHED("an update");
    if (same)
        REACHED("one that keeps");
}

int main(void)
{
    raw_fields();
    architectural();
    update_read();
}
