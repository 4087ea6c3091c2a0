/*
 * A small RMP of its own, as a device under test for rmpcore's test vectors: reads cases on stdin, answers on stdout.
 *
 *     cc -std=c11 -O2 -o rmp rmp.c && rmpcore ver vectors/level1.txt -- ./rmp
 *
 * Written from docs/rmp.md alone; it has nothing of rmpcore in it.  It knows the instructions, the access checks and the
 * page states, and skips what is about page tables.  With -DBREAK=NAME it makes one of the mistakes that are listed
 * below, so that one can see what the vectors say about each.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    NOTHING,
    OVERLAP_8,        /* RMPUPDATE: 4K over a 2M entry is allowed */
    OVERLAP_8B,       /* ... and 4K inside one */
    OVERLAP_9,        /* ... and 2M over assigned 4K pages */
    OVERLAP_BY_COUNT, /* ... which are found by the subpage count */
    IMMUTABLE_WRITE,  /* RMPUPDATE does not look at immutable */
    ROWS_6_7,         /* RMPUPDATE looks at in use before immutable */
    IN_USE_2M,        /* RMPUPDATE looks at the aligned page's mark only */
    ROW_4,            /* RMPUPDATE lets an unassigned page have an ASID */
    ASID_LIMIT,       /* RMPUPDATE cuts an ASID that is too large */
    LOW_BITS,         /* RMPUPDATE keeps bits 11:0 of the gpa */
    GPA_WIDTH,        /* RMPUPDATE keeps gpa bits that the part does not have */
    KEEP_ALWAYS,      /* RMPUPDATE keeps validated and permissions of another owner */
    KEEP_NEVER,       /* RMPUPDATE resets them where only immutable changes */
    FREE_SIZE,        /* RMPUPDATE stores page size 2M in an unassigned entry */
    INNER_ZERO,       /* RMPUPDATE with 2M leaves the inner entries unassigned */
    INNER_FULL,       /* RMPUPDATE with 2M gives the inner entries an owner */
    COUNT_UP,         /* the subpage count does not go up */
    COUNT_WRAPS,      /* the subpage count goes below 0 */
    LOCK_BIT,         /* lock does not follow immutable */
    C_BIT_KEPT,       /* the C-bit stays in addresses */
    COVERED_ONE_MORE, /* one frame more than the table has is covered */
    PART_COVERED,     /* of a 2M page only the first frame has to be covered */
    SMASH_GPA,        /* PSMASH: all 512 have the first gpa */
    SMASH_COUNT,      /* PSMASH leaves the subpage count at 0 */
    SMASH_IMMUTABLE,  /* PSMASH does not look at immutable */
    SMASH_RESETS,     /* PSMASH clears validated */
    SMASH_IN_USE,     /* PSMASH does not look at pages in use */
    STATUS_INNER,     /* RMPREAD: region status for pages that are not aligned */
    INNER_GOVERNS,    /* the page's own entry governs inside a 2M page */
    GPA_OFFSET,       /* the expected gpa inside a 2M page lacks the offset */
    VALID_SIZE,       /* PVALIDATE with 2M on a 4K entry is done */
    VALID_FLAG,       /* PVALIDATE does not set CF */
    RESCIND_RESETS,   /* PVALIDATE takes the permissions when it rescinds */
    ADJUST_SAME_VMPL, /* RMPADJUST may change its own VMPL */
    ADJUST_MORE,      /* RMPADJUST gives permissions that it has not */
    ADJUST_VMSA,      /* RMPADJUST changes vmsa at every VMPL */
    NEIGHBOUR,        /* a write through 2M looks at the page itself only */
    NEIGHBOUR_HEAD,   /* ... at the page and the aligned one */
    WALK_LARGE,       /* the host's page walk is judged by the translation's size */
    IN_USE_WRITE,     /* marks do not stop writes */
    WRITE_ONLY,       /* a permission byte with write and without read is good */
    CHECK_ORDER,      /* validated comes before the page size */
    FETCH_USER,       /* fetches at CPL 3 look at the supervisor's bit */
    USER_BIT          /* the error code lacks bit 2 */
};
#ifndef BREAK
#define BREAK NOTHING
#endif
#define BROKEN(mistake) (BREAK == (mistake))

enum { MAX_FRAMES = 1 << 16, MAX_ROWS = 64, MAX_MACHINES = 32, MAX_LINE = 1 << 16, REGION = 512 };

#define BIT(n) (UINT64_C(1) << (n))
#define ASSIGNED BIT(0)
#define LARGE BIT(1)
#define IMMUTABLE BIT(2)
#define COUNT (UINT64_C(511) << 3)
#define GPA UINT64_C(0x0007fffffffff000)
#define ASID (UINT64_C(0x3ff) << 51)
#define VMSA BIT(61)
#define VALIDATED BIT(62)
#define LOCK BIT(63)

struct entry {
    uint64_t lo, hi;
};

/* What a part has or lacks: the switches of docs/rmp.md that matter here. */
struct machine {
    char name[64];
    uint64_t frames, c_bit, gpa_bits, vmpl0_all, rmpread, rmpquery, vmpls, vmpl_sss, hv_in_use_wr;
    bool has_rmp;
};

static struct machine machines[MAX_MACHINES], *m;
static int machine_count;
static struct entry before[MAX_FRAMES], table[MAX_FRAMES];
static uint64_t in_use[MAX_ROWS][3];
static int in_use_count;
static char line[MAX_LINE], op[MAX_LINE], case_name[256];
static bool other_items;

/* --- the input ---------------------------------------------------------------------------------------------------- */

/* The text after " key=" in a line, NULL where there is none. */
static const char *find(const char *text, const char *key)
{
    size_t length = strlen(key);

    for (const char *at = strchr(text, ' '); at; at = strchr(at + 1, ' '))
        if (!strncmp(at + 1, key, length) && at[1 + length] == '=')
            return at + 2 + length;
    return NULL;
}

static uint64_t number(const char *text, const char *key, uint64_t otherwise)
{
    const char *value = find(text, key);

    return value ? strtoull(value, NULL, 0) : otherwise;
}

static bool is(const char *text, const char *key, const char *value)
{
    const char *found = find(text, key);
    size_t length = strlen(value);

    return found && !strncmp(found, value, length) && (found[length] == ' ' || !found[length]);
}

static uint64_t arg(const char *key)
{
    return number(op, key, 0);
}

static unsigned level_arg(void)
{
    return is(op, "level", "2M") ? 2 : is(op, "level", "1G") ? 3 : is(op, "level", "4K") ? 1 : (unsigned)arg("level");
}

/* --- the output --------------------------------------------------------------------------------------------------- */

static void result(const char *kind, int ret, uint64_t value, uint64_t value2, const char *reason)
{
    printf("answer %s\nresult kind=%s ret=%d value=%#" PRIx64 " value2=%#" PRIx64, case_name, kind, ret, value, value2);
    if (reason)
        printf(" reason=%s", reason);
}

static void code(int eax)
{
    result("CODE", eax, 0, 0, NULL);
}

static void fault(int vector, uint64_t error, uint64_t cr2, const char *reason)
{
    result("FAULT", vector, error, cr2, reason);
}

/* --- the table ---------------------------------------------------------------------------------------------------- */

static uint64_t frame_of(uint64_t pa)
{
    return (BROKEN(C_BIT_KEPT) ? pa : pa & ~m->c_bit) >> 12;
}

static bool covered(uint64_t pfn)
{
    return pfn < m->frames + BROKEN(COVERED_ONE_MORE);
}

static bool region_covered(uint64_t pfn)
{
    return covered(pfn) && (BROKEN(PART_COVERED) || covered(pfn | (REGION - 1)));
}

static bool used(uint64_t pfn)
{
    for (int i = 0; i < in_use_count; i++)
        for (int j = 0; j < 3; j++)
            if (in_use[i][j] && in_use[i][j] == pfn)
                return true;
    return false;
}

static bool region_used(uint64_t head)
{
    for (uint64_t i = 0; i < REGION; i++)
        if (covered(head + i) && used(head + i))
            return true;
    return false;
}

static uint64_t gpa_mask(void)
{
    return (BROKEN(GPA_WIDTH) ? BIT(51) - 1 : BIT(m->gpa_bits) - 1) & GPA;
}

/* --- RMPUPDATE, rmp §2.2 ------------------------------------------------------------------------------------------ */

static bool others_assigned(uint64_t head)
{
    if (BROKEN(OVERLAP_BY_COUNT))
        return table[head].lo & COUNT;
    for (uint64_t i = 1; i < REGION; i++)
        if (table[head + i].lo & ASSIGNED)
            return true;
    return false;
}

static struct entry written(struct entry old, uint64_t gpa, bool assigned, bool large, bool immutable, uint64_t asid)
{
    struct entry new = {0, m->vmpl0_all};
    uint64_t same = ASSIGNED | LARGE | GPA | ASID;

    if (assigned)
        new.lo |= ASSIGNED;
    if (large && (assigned || BROKEN(FREE_SIZE)))
        new.lo |= LARGE;
    if (immutable)
        new.lo |= IMMUTABLE | (BROKEN(LOCK_BIT) ? 0 : LOCK);
    new.lo |= gpa & gpa_mask();
    if (BROKEN(LOW_BITS))
        new.lo |= gpa & COUNT;
    new.lo |= asid << 51 & ASID;
    if (asid && !BROKEN(KEEP_NEVER) && (BROKEN(KEEP_ALWAYS) || !((old.lo ^ new.lo) & same))) {
        new.lo |= old.lo & (VMSA | VALIDATED);
        new.hi = old.hi;
    }
    return new;
}

static int rmpupdate(void)
{
    uint64_t pfn = frame_of(arg("pa")), head = pfn & ~(uint64_t)(REGION - 1), gpa = arg("gpa");
    uint64_t high = arg("assigned") | (uint64_t)is(op, "size", "2M") << 8 | arg("immutable") << 16 | arg("asid") << 32;
    bool assigned, large, immutable, aligned = pfn == head;
    uint64_t asid;
    struct entry old;

    high |= arg("reserved");
    assigned = high & 1, large = high >> 8 & 1, immutable = high >> 16 & 1, asid = high >> 32;
    if (arg("guest")) /* row 1 */
        return 2;
    if (large && !aligned) /* row 3 */
        return 1;
    if (!assigned && (immutable || asid) && !BROKEN(ROW_4)) /* row 4 */
        return 1;
    if (asid > 0x3ff && !BROKEN(ASID_LIMIT))
        return 1;
    if (large ? !region_covered(pfn) : !covered(pfn)) /* row 5 */
        return 1;
    old = table[pfn];
    if (BROKEN(ROWS_6_7) && (large ? region_used(head) : used(pfn)))
        return 3;
    if (old.lo & IMMUTABLE && !BROKEN(IMMUTABLE_WRITE)) /* row 6 */
        return 2;
    if (large && !BROKEN(IN_USE_2M) ? region_used(head) : used(pfn)) /* row 7 */
        return 3;
    if (!large && aligned && old.lo & LARGE && !BROKEN(OVERLAP_8)) /* row 8 */
        return 4;
    if (!large && !aligned && (table[head].lo & (ASSIGNED | LARGE)) == (ASSIGNED | LARGE) && !BROKEN(OVERLAP_8B))
        return 4; /* row 8b */
    if (large && !(old.lo & LARGE) && others_assigned(head) && !BROKEN(OVERLAP_9)) /* row 9 */
        return 4;
    table[pfn] = written(old, gpa, assigned, large, immutable, asid);
    if (large) {
        for (uint64_t i = 1; i < REGION; i++) {
            table[head + i].lo = assigned && !BROKEN(INNER_ZERO) ? ASSIGNED : 0;
            if (BROKEN(INNER_FULL))
                table[head + i].lo |= table[head].lo & ASID;
            table[head + i].hi = 0;
        }
    } else if (aligned) {
        table[pfn].lo |= old.lo & COUNT;
    } else { /* rmp §1.2 */
        uint64_t count = (table[head].lo & COUNT) >> 3;

        if (assigned && !(old.lo & ASSIGNED) && count < 511 && !BROKEN(COUNT_UP))
            count++;
        else if (!assigned && old.lo & ASSIGNED && (count || BROKEN(COUNT_WRAPS)))
            count--;
        table[head].lo = (table[head].lo & ~COUNT) | (count << 3 & COUNT);
    }
    return 0;
}

/* --- PSMASH, rmp §2.3 --------------------------------------------------------------------------------------------- */

static int psmash(void)
{
    uint64_t pa = arg("pa"), pfn = frame_of(pa), gpa;
    struct entry old;

    if (arg("guest")) /* row 1 */
        return 2;
    if (pa & (BIT(21) - 1) || !region_covered(pfn)) /* row 2 */
        return 1;
    if (region_used(pfn) && !BROKEN(SMASH_IN_USE)) /* row 3 */
        return 3;
    old = table[pfn];
    if ((old.lo & (ASSIGNED | LARGE)) != (ASSIGNED | LARGE)) /* row 4 */
        return 7;
    if (old.lo & IMMUTABLE && !BROKEN(SMASH_IMMUTABLE))
        return 7;
    gpa = old.lo & GPA;
    for (uint64_t i = 0; i < REGION; i++) { /* row 5 */
        table[pfn + i] = old;
        table[pfn + i].lo &= ~(LARGE | COUNT | GPA);
        table[pfn + i].lo |= (BROKEN(SMASH_GPA) ? gpa : gpa + (i << 12)) & gpa_mask();
        if (BROKEN(SMASH_RESETS))
            table[pfn + i].lo &= ~VALIDATED;
    }
    if (!BROKEN(SMASH_COUNT))
        table[pfn].lo |= COUNT;
    return 0;
}

/* --- RMPREAD, rmp §2.4 -------------------------------------------------------------------------------------------- */

static void rmpread(void)
{
    uint64_t pfn = frame_of(arg("pa")), lo, high;

    if (arg("guest"))
        code(2);
    else if (!covered(pfn))
        code(1);
    else {
        lo = table[pfn].lo;
        high = (lo & 1) | (lo >> 1 & 1) << 8 | (lo >> 2 & 1) << 16 | (lo & ASID) >> 51 << 32;
        if ((pfn % REGION == 0 || BROKEN(STATUS_INNER)) && lo & COUNT)
            high |= BIT(9);
        result("CODE", 0, lo & GPA, high, NULL);
    }
}

/* --- the private page of a guest, rmp §3.1, §3.2 ------------------------------------------------------------------ */

struct governing {
    uint64_t pfn;
    uint64_t gpa; /* expected for the page at hand */
    struct entry e;
};

/* Covered, guest-owned, reverse-map, mutable: NULL, or the reason. */
static const char *guests_page(uint64_t pa, uint64_t gpa, uint64_t asid, struct governing *g)
{
    uint64_t pfn = frame_of(pa), head = pfn & ~(uint64_t)(REGION - 1);

    if (!covered(pfn))
        return "UNCOVERED";
    g->pfn = pfn;
    if ((table[head].lo & (ASSIGNED | LARGE)) == (ASSIGNED | LARGE) && !BROKEN(INNER_GOVERNS))
        g->pfn = head;
    g->e = table[g->pfn];
    g->gpa = ((g->e.lo & GPA) + (BROKEN(GPA_OFFSET) ? 0 : (pfn - g->pfn) << 12)) & (BIT(m->gpa_bits) - 1);
    if (!(g->e.lo & ASSIGNED) || !asid || (g->e.lo & ASID) >> 51 != asid)
        return "OWNER";
    if ((gpa & ~UINT64_C(0xfff)) != g->gpa)
        return "GPA";
    return g->e.lo & IMMUTABLE ? "IMMUTABLE" : NULL;
}

#define NPF_INSTRUCTION UINT64_C(0x480000005)
#define NPF_SIZEM BIT(35)

static uint64_t permission(struct entry e, uint64_t vmpl)
{
    return e.hi >> 8 * vmpl & 0xff;
}

/* The part that PVALIDATE, RMPADJUST and RMPQUERY share.  true: go on. */
static bool guest_operand(struct governing *g, bool small)
{
    const char *no = guests_page(arg("pa"), arg("gpa"), arg("asid"), g);

    if (no)
        result("NPF", 0x400, NPF_INSTRUCTION, arg("gpa"), no);
    else if (g->e.lo & LARGE && (small || level_arg() == 1))
        result("NPF", 0x400, NPF_INSTRUCTION | NPF_SIZEM, arg("gpa"), "SIZE");
    else
        return true;
    return false;
}

static bool in_snp_guest(void)
{
    if (!m->has_rmp || arg("plain"))
        fault(6, 0, 0, NULL);
    else if (arg("user"))
        fault(13, 0, 0, NULL);
    else
        return true;
    return false;
}

static void pvalidate(void) /* rmp §2.5 */
{
    uint32_t ecx = (uint32_t)arg("rcx"), edx = (uint32_t)arg("rdx");
    struct governing g;

    if (!in_snp_guest()) /* rows 0, 1 */
        return;
    if (arg("vmpl")) { /* row 2 */
        fault(13, 0, 0, NULL);
        return;
    }
    if (ecx > 1 || edx > 1 || (ecx && arg("gva") & UINT64_C(0x1ff000))) { /* rows 3, 4 */
        code(1);
        return;
    }
    if (!guest_operand(&g, !ecx)) /* rows 6, 7 */
        return;
    if (ecx && !(g.e.lo & LARGE) && !BROKEN(VALID_SIZE)) { /* row 8 */
        code(6);
        return;
    }
    code(0);
    if (!!(g.e.lo & VALIDATED) == edx) { /* row 9 */
        if (!BROKEN(VALID_FLAG))
            printf(" cf=1");
        return;
    }
    table[g.pfn].lo ^= VALIDATED; /* row 10 */
    if (BROKEN(RESCIND_RESETS) && !edx)
        table[g.pfn].hi = m->vmpl0_all;
}

static void rmpadjust(void) /* rmp §2.6 */
{
    uint64_t rcx = arg("rcx"), rdx = arg("rdx"), vmpl = arg("vmpl"), target = rdx & 0xff, mask = rdx >> 8 & 0xff;
    struct governing g;

    if (!in_snp_guest())
        return;
    if (rcx > 1 || rdx >> 17 || mask >> 5 || (rcx && arg("gva") & UINT64_C(0x1ff000)) || target >= m->vmpls)
        code(1); /* row 1 */
    else if (BROKEN(ADJUST_SAME_VMPL) ? target < vmpl : target <= vmpl)
        code(2); /* row 2 */
    else if (guest_operand(&g, !rcx)) { /* rows 3, 4 */
        if (!(g.e.lo & VALIDATED)) /* row 5 */
            fault(29, 0x404, arg("gva"), "NOT_VALIDATED");
        else if (rcx && !(g.e.lo & LARGE)) /* row 6 */
            code(6);
        else if (mask & ~permission(g.e, vmpl) && !BROKEN(ADJUST_MORE)) /* row 7 */
            code(2);
        else { /* row 8 */
            struct entry *e = &table[g.pfn];

            code(0);
            e->hi = (e->hi & ~(UINT64_C(0xff) << 8 * target)) | mask << 8 * target;
            if (!vmpl || BROKEN(ADJUST_VMSA))
                e->lo = (e->lo & ~VMSA) | (rdx >> 16 & 1) << 61;
        }
    }
}

static void rmpquery(void) /* rmp §2.7 */
{
    uint64_t target = arg("rdx") & 0xff;
    struct governing g;

    if (!m->rmpquery) {
        fault(6, 0, 0, NULL);
        return;
    }
    if (!in_snp_guest() || !guest_operand(&g, false))
        return;
    if (!(g.e.lo & VALIDATED))
        fault(29, 0x404, arg("gva"), "NOT_VALIDATED");
    else if (target >= m->vmpls || target < arg("vmpl"))
        code(2);
    else
        result("CODE", 0, g.e.lo >> 1 & 1, target | permission(g.e, target) << 8 | (g.e.lo >> 61 & 1) << 16, NULL);
}

/* --- accesses, rmp §3.2 ------------------------------------------------------------------------------------------- */

enum { READ, WRITE, FETCH, WALK, WALK_WRITE, SHADOW_STACK };

static const char *const kinds[] = {"read", "write", "fetch", "walk", "walk_write", "shadow_stack", NULL};
static const char *const whos[] = {
    "host", "plain", "snp", "iommu", "psp", "vmcb", "avic", "vmsa_plain", "vmsa_snp", "hsave", "vmsave", NULL,
};
enum { HOST, PLAIN, SNP, IOMMU, PSP, VMCB, AVIC, VMSA_PLAIN, VMSA_SNP, HSAVE, VMSAVE };

static int choice(const char *key, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (is(op, key, names[i]))
            return i;
    return (int)arg(key);
}

/* Hypervisor-owned: NULL, or the reason. */
static const char *not_owned(uint64_t pfn, unsigned level)
{
    uint64_t head = pfn & ~(uint64_t)(REGION - 1);

    if (!covered(pfn))
        return NULL;
    if (table[pfn].lo & ASSIGNED)
        return "ASSIGNED";
    if (level == 1 || BROKEN(NEIGHBOUR))
        return NULL;
    for (uint64_t i = 0; i < (BROKEN(NEIGHBOUR_HEAD) ? 1 : REGION); i++)
        if (covered(head + i) && table[head + i].lo & ASSIGNED)
            return "NEIGHBOUR";
    return NULL;
}

static const char *stopped_by_mark(uint64_t pfn, unsigned level)
{
    if (m->hv_in_use_wr || BROKEN(IN_USE_WRITE))
        return NULL;
    return used(pfn) || (level > 1 && used(pfn & ~(uint64_t)(REGION - 1))) ? "IN_USE" : NULL;
}

/* What is checked of those who may only touch what is the hypervisor's. */
static const char *shared_check(int who, int kind, uint64_t pfn, unsigned level)
{
    const char *no;

    if (kind == READ || kind == FETCH || (who == IOMMU && kind == WALK))
        return NULL;
    if (kind == WALK_WRITE && who != IOMMU)
        level = 1;
    if (kind == WALK && who == HOST && !BROKEN(WALK_LARGE))
        level = 1;
    no = not_owned(pfn, level);
    return no || kind == WALK || who == IOMMU ? no : stopped_by_mark(pfn, level);
}

static uint64_t exit_info(int kind, bool private)
{
    uint64_t info = 0x80000005;

    if (kind == WRITE || kind == WALK_WRITE || kind == SHADOW_STACK)
        info |= BIT(1);
    if (kind == FETCH)
        info |= BIT(4);
    info |= kind == WALK || kind == WALK_WRITE ? BIT(33) : BIT(32);
    return private ? info | BIT(34) : info;
}

static bool permitted(uint64_t byte, int kind)
{
    static const uint64_t wanted[] = {1, 2, 8, 1, 3, 2};
    uint64_t want = wanted[kind];

    if ((byte & 3) == 2 && !BROKEN(WRITE_ONLY))
        return false;
    if (kind == FETCH && arg("user") && !BROKEN(FETCH_USER))
        want = 4;
    if (kind == SHADOW_STACK && m->vmpl_sss)
        want = 16;
    return (byte & want) == want;
}

static void private_access(int kind)
{
    uint64_t info = exit_info(kind, true), gpa = arg("gpa");
    struct governing g;
    const char *no = guests_page(arg("pa"), gpa, arg("asid"), &g);
    bool small = level_arg() == 1;

    if (no)
        result("NPF", 0x400, info, gpa, no);
    else if (BROKEN(CHECK_ORDER) && !(g.e.lo & VALIDATED))
        fault(29, 0x404, arg("gva"), "NOT_VALIDATED");
    else if (small && g.e.lo & LARGE)
        result("NPF", 0x400, info | NPF_SIZEM, gpa, "SIZE");
    else if (!small && !(g.e.lo & LARGE))
        result("NPF", 0x400, info, gpa, "SIZE");
    else if (!(g.e.lo & VALIDATED))
        fault(29, 0x404, arg("gva"), "NOT_VALIDATED");
    else if (!permitted(permission(g.e, arg("vmpl")), kind))
        result("NPF", 0x400, info | BIT(36) | (kind == SHADOW_STACK && m->vmpl_sss ? BIT(37) : 0), gpa, "VMPL");
    else
        result("ALLOWED", 0, 0, 0, NULL);
}

static void page_for_vmrun(int who) /* rmp §3.7 */
{
    struct governing g;
    const char *no;

    if (who == VMSA_SNP) {
        no = guests_page(arg("pa"), arg("gpa"), arg("asid"), &g);
        if (!no && !(g.e.lo & VMSA))
            no = "NOT_VMSA";
    } else if (who == HSAVE && !arg("pa")) {
        no = "NULL";
    } else {
        no = not_owned(frame_of(arg("pa")), 1);
    }
    if (!no)
        result("ALLOWED", 0, 0, 0, NULL);
    else if (who == AVIC || who == VMSA_PLAIN || who == VMSA_SNP)
        result("INVALID", -1, 0, 0, no);
    else
        fault(13, 0, 0, no);
}

static void access_check(void)
{
    int who = choice("who", whos), kind = choice("access", kinds);
    bool write = kind == WRITE || kind == WALK_WRITE || kind == SHADOW_STACK;
    const char *no;

    if (!m->has_rmp || who == PSP) {
        result("ALLOWED", 0, 0, 0, NULL);
        return;
    }
    if (who >= VMCB) {
        page_for_vmrun(who);
        return;
    }
    if (who == SNP && (arg("c") || kind == FETCH || kind == WALK || kind == WALK_WRITE)) {
        private_access(kind);
        return;
    }
    no = shared_check(who, kind, frame_of(arg("pa")), level_arg());
    if (!no)
        result("ALLOWED", 0, 0, 0, NULL);
    else if (who == HOST)
        fault(14, 0x80000001 | (write ? 2U : 0U) | (arg("user") && !BROKEN(USER_BIT) ? 4U : 0U), arg("gva"), no);
    else if (who == IOMMU)
        result("IOMMU", 0xd, 0, arg("pa"), no);
    else
        result("NPF", 0x400, exit_info(kind, arg("c")), arg("gpa"), no);
}

/* --- page states, rmp §4.1 ---------------------------------------------------------------------------------------- */

static int page_state(void)
{
    uint64_t pfn = arg("pfn"), lo, tag, rest;
    bool assigned, validated, asid, immutable, vmsa, lock;

    if (!covered(pfn))
        return 0;
    lo = table[pfn].lo;
    assigned = lo & ASSIGNED, validated = lo & VALIDATED, asid = lo & ASID, immutable = lo & IMMUTABLE;
    vmsa = lo & VMSA, lock = lo & LOCK, tag = (lo & GPA) >> 48, rest = (lo & GPA & (BIT(48) - 1)) >> 12;
    if (!assigned)
        return validated || asid ? 12 : immutable ? 2 : 1;
    if (asid)
        return 7 + (immutable ? 0 : 2) + (validated ? 1 : 0);
    if (validated)
        return 12;
    if (!immutable)
        return lock ? 12 : 6;
    if (!tag && !rest)
        return vmsa ? 4 : 3;
    if (tag == 1 && rest)
        return 5;
    return tag == 2 && rest == 1 && !vmsa ? 11 : 12;
}

/* --- cases -------------------------------------------------------------------------------------------------------- */

static bool starts(const char *text, const char *word)
{
    size_t length = strlen(word);

    return !strncmp(text, word, length) && (text[length] == ' ' || !text[length]);
}

/* Begins the answer; false: this program does not know the op. */
static bool execute(void)
{
    bool update = starts(op, "RMPUPDATE"), smash = starts(op, "PSMASH"), read = starts(op, "RMPREAD");

    if (update || smash || read) {
        if (!m->has_rmp || (read && !m->rmpread))
            fault(6, 0, 0, NULL);
        else if (arg("user"))
            fault(13, 0, 0, NULL);
        else if (read)
            rmpread();
        else
            code(update ? rmpupdate() : psmash());
    } else if (starts(op, "PVALIDATE")) {
        pvalidate();
    } else if (starts(op, "RMPADJUST")) {
        rmpadjust();
    } else if (starts(op, "RMPQUERY")) {
        rmpquery();
    } else if (starts(op, "access")) {
        access_check();
    } else if (starts(op, "page_state")) {
        result("KERNEL", page_state(), 0, 0, NULL);
    } else {
        return false;
    }
    putchar('\n');
    return true;
}

static void answer(void)
{
    if (m)
        memcpy(table, before, m->frames * sizeof *table);
    if (!m || other_items || !execute()) {
        printf("skip %s\n", case_name);
        return;
    }
    for (uint64_t pfn = 0; pfn < m->frames; pfn++)
        if (table[pfn].lo != before[pfn].lo || table[pfn].hi != before[pfn].hi)
            printf("rmp pfn=%#" PRIx64 " lo=%#" PRIx64 " hi=%#" PRIx64 "\n", pfn, table[pfn].lo, table[pfn].hi);
    puts("end");
}

static void begin_case(void)
{
    sscanf(line, "%*s %255s", case_name);
    m = NULL;
    for (int i = 0; i < machine_count; i++)
        if (is(line, "machine", machines[i].name))
            m = &machines[i];
    if (m)
        memset(before, 0, m->frames * sizeof *before);
    in_use_count = 0;
    other_items = false;
    op[0] = 0;
}

static void read_rmp(void)
{
    uint64_t pfn = number(line, "pfn", 0), n = number(line, "n", 1), step = number(line, "step", 0);

    for (uint64_t i = 0; i < n && pfn + i < MAX_FRAMES; i++) {
        before[pfn + i].lo = number(line, "lo", 0) + i * step;
        before[pfn + i].hi = number(line, "hi", 0);
    }
}

static void read_machine(void)
{
    if (starts(line, "machine") && machine_count < MAX_MACHINES) {
        m = &machines[machine_count++];
        sscanf(line, "%*s %63s", m->name);
    } else if (!m) {
        return;
    } else if (starts(line, "map")) {
        m->c_bit = number(line, "c_bit", 0);
    } else if (starts(line, "rmp_table")) {
        m->has_rmp = true;
        m->frames = number(line, "frames", 0);
        if (m->frames > MAX_FRAMES) {
            fprintf(stderr, "machine %s covers more than %d frames\n", m->name, MAX_FRAMES);
            exit(1);
        }
    } else if (starts(line, "switches")) {
        m->gpa_bits = number(line, "gpa_bits", 51);
        m->vmpl0_all = number(line, "vmpl0_all", 0x1f);
        m->rmpread = number(line, "rmpread", 0);
        m->rmpquery = number(line, "rmpquery", 0);
        m->vmpls = number(line, "vmpls", 4);
        m->vmpl_sss = number(line, "vmpl_sss", 1);
        m->hv_in_use_wr = number(line, "hv_in_use_wr", 0);
    }
}

int main(void)
{
    bool in_case = false;

    puts("rmpcore-answers version=1");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (starts(line, "case")) {
            in_case = true;
            begin_case();
        } else if (!in_case) {
            read_machine();
        } else if (starts(line, "rmp")) {
            read_rmp();
        } else if (starts(line, "in_use") && in_use_count < MAX_ROWS) {
            in_use[in_use_count][0] = number(line, "vmcb", 0);
            in_use[in_use_count][1] = number(line, "vmsa", 0);
            in_use[in_use_count++][2] = number(line, "avic", 0);
        } else if (starts(line, "op")) {
            memcpy(op, line + 3, strlen(line + 3) + 1);
        } else if (starts(line, "end")) {
            answer();
            in_case = false;
        } else if (!starts(line, "rule") && !starts(line, "about")) {
            other_items = true; /* something that this program does not model */
        }
    }
    return 0;
}
