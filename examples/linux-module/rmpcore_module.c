/*
 * rmpcore as a Linux module: a kernel without SNP hardware gets an RMP, so that its own SNP host functions work.
 *
 * On a processor without SNP the instructions RMPUPDATE, PSMASH and RMPREAD raise #UD.  A die notifier sees the
 * registers, lets rmpcore do the instruction on a table in this module's memory, and the kernel goes on behind it
 * (docs/embedding.md, section 3).  The kernel's SNP host code asks two flags and finds the table by variables that are
 * set at boot only; the module sets these, and puts them back when it goes.  What the kernel reads as its RMP are the
 * very bytes that rmpcore writes.
 *
 * Nothing enforces the table: no access faults.  What is tested is the kernel's code around the instructions.
 *
 * In this order: what the kernel does not export; the RMP; ops as text; the log; instructions; frames that user space
 * may give away; calls; the files in /proc/rmpcore; switching the kernel's code on and off.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kdebug.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/utsname.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/coco.h>
#include <asm/pgtable_types.h>
#include <asm/trapnr.h>

#include "rmpcore/emulate.h"
#include "rmpcore/status.h"

MODULE_DESCRIPTION("AMD SEV-SNP's RMP and its host instructions, emulated by rmpcore");
MODULE_LICENSE("Dual MIT/GPL");

static char *hardware = "milan";
module_param(hardware, charp, 0444);
MODULE_PARM_DESC(hardware, "profile: milan, genoa or turin (with RMPREAD)");

static bool host = true;
module_param(host, bool, 0444);
MODULE_PARM_DESC(host, "switch the kernel's SNP host code on");

static bool serial = true;
module_param(serial, bool, 0644);
MODULE_PARM_DESC(serial, "one call at a time, so that the log is in the order of what happened");

static bool contention;
module_param(contention, bool, 0644);
MODULE_PARM_DESC(contention, "answer FAIL_INUSE while another CPU works in the region, instead of waiting for it");

static uint overlap_limit = 1000;
module_param(overlap_limit, uint, 0644);
MODULE_PARM_DESC(overlap_limit, "end the kernel's repeating after so many FAIL_OVERLAPs in a row; 0: never");

static uint log_size = 65536;
module_param(log_size, uint, 0444);
MODULE_PARM_DESC(log_size, "lines that /proc/rmpcore/log keeps");

/* ---- what the kernel does not export ---- */

typedef unsigned long lookup_fn(const char *name);
typedef int private_fn(u64 pfn, u64 gpa, enum pg_level level, u32 asid, bool immutable);
typedef int shared_fn(u64 pfn, enum pg_level level);
typedef int psmash_fn(u64 pfn);
typedef int lookup_rmpentry_fn(u64 pfn, bool *assigned, int *level);
typedef int set_memory_fn(unsigned long address, int pages);
typedef int direct_map_fn(struct page *page);
typedef long write_nofault_fn(void *to, const void *from, size_t size);

static_assert(__same_type(&set_direct_map_invalid_noflush, direct_map_fn *), "another kernel's function");

static lookup_fn *lookup_symbol;

static struct {
    unsigned long *max_pfn;            /* one past the highest frame of memory */
    unsigned long *direct_pages_count; /* leaves of the direct map, by level */
    write_nofault_fn *write_nofault;
} kernel;

/* kallsyms_lookup_name() finds everything else, and a kprobe finds it. */
static int find_lookup(void)
{
    struct kprobe probe = {.symbol_name = "kallsyms_lookup_name"};
    int error = register_kprobe(&probe);

    if (error)
        return error;
    lookup_symbol = (lookup_fn *)probe.addr;
    unregister_kprobe(&probe);
    return 0;
}

static void *find(const char *name)
{
    return (void *)lookup_symbol(name);
}

/* ---- the RMP ---- */

#define RMP_BASE (UINT64_C(1) << 40) /* where the model has the table, unless memory reaches so far */
#define ALIGNMENT (UINT64_C(1) << 30)

static struct {
    struct rmpc_range range;
    struct rmpc_mem mem;
    struct rmpc_hardware hardware;
    struct rmpc_rmp_segment segment;
    struct rmpc_rmp rmp;
    u32 *words;
    u64 frames;
} table;

static int make_table(void)
{
    static const char *const names[] = {"milan", "genoa", "turin"};
    struct rmpc_rmp_msrs msrs = {.base = RMP_BASE};
    struct rmpc_rmp_room room;
    enum rmpc_status status;
    int part;
    u64 size;

    part = match_string(names, ARRAY_SIZE(names), hardware);
    if (part < 0) {
        pr_err("no such hardware: %s\n", hardware);
        return -EINVAL;
    }
    table.frames = *kernel.max_pfn + 1;
    if (msrs.base < PFN_PHYS(table.frames))
        msrs.base = ALIGN(PFN_PHYS(table.frames), ALIGNMENT);
    size = RMPC_RMP_BOOKKEEPING + table.frames * RMPC_RMP_ENTRY_SIZE;
    msrs.end = msrs.base + size - 1;
    table.range = (struct rmpc_range){.base = msrs.base, .size = PAGE_ALIGN(size)};
    table.range.host = vzalloc(table.range.size);
    if (!table.range.host)
        return -ENOMEM;
    table.mem = (struct rmpc_mem){.ranges = &table.range, .count = 1};
    status = rmpc_hardware_init(&table.hardware, (enum rmpc_part)part);
    if (status == RMPC_OK)
        status = rmpc_rmp_measure(&msrs, &table.mem, &table.hardware, &room);
    if (status == RMPC_OK) {
        table.words = vzalloc(room.words * sizeof(*table.words));
        if (!table.words)
            return -ENOMEM;
        status = rmpc_rmp_init(&table.rmp, &msrs, &table.mem, &table.hardware, 0, &table.segment, table.words);
    }
    if (status != RMPC_OK) {
        pr_err("RMP: %s\n", rmpc_status_text(status));
        return -EINVAL;
    }
    return 0;
}

static void free_table(void)
{
    vfree(table.words);
    vfree(table.range.host);
}

/* An entry as it is now.  Each half is, that is: they are written one after the other. */
static struct rmpc_rmp_entry entry_of(u64 pfn)
{
    const struct rmpc_rmp_entry *entry = &table.segment.entries[pfn];

    return (struct rmpc_rmp_entry){READ_ONCE(entry->lo), READ_ONCE(entry->hi)};
}

/* The next frame at or after pfn whose entry is not zero, or table.frames.  A region whose word is 0 was never changed,
 * so a large table that is empty is looked through quickly. */
static u64 next_used(u64 pfn)
{
    while (pfn < table.frames) {
        struct rmpc_rmp_entry entry;

        if (!(pfn % RMPC_REGION_FRAMES)) {
            cond_resched();
            if (!READ_ONCE(table.words[pfn / RMPC_REGION_FRAMES])) {
                pfn += RMPC_REGION_FRAMES;
                continue;
            }
        }
        entry = entry_of(pfn);
        if (entry.lo || entry.hi)
            return pfn;
        pfn++;
    }
    return table.frames;
}

/* ---- ops, as lines of a trace: docs/formats.md, "Traces" ---- */

enum op_code {
    OP_RMPUPDATE,
    OP_PSMASH,
    OP_RMPREAD,
    OP_RMP_MAKE_PRIVATE,
    OP_RMP_MAKE_SHARED,
    OP_KERNEL_PSMASH,
    OP_SNP_LOOKUP_RMPENTRY,
    OP_SET_MEMORY_4K,
    OP_SET_MEMORY_RO,
    OP_SET_MEMORY_RW,
    OP_SET_MEMORY_NX,
    OP_SET_MEMORY_X,
    OP_SET_MEMORY_NP,
    OP_SET_MEMORY_P,
    OP_SET_DIRECT_MAP_INVALID,
    OP_SET_DIRECT_MAP_DEFAULT,
    OP_INJECT,
    OP_ALLOC, /* this module's own: in the log it is a comment */
    OP_END
};

enum { ASSIGNED = 1 << 0, SIZE_2M = 1 << 1, IMMUTABLE = 1 << 2 }; /* flags of an op */

struct op {
    u8 code; /* enum op_code */
    u8 level;
    u8 flags;
    u32 id;
    u64 address; /* frame or bytes */
    u64 gpa;
    u64 count;
};

enum answer_kind { ANSWER_KERNEL, ANSWER_CODE, ANSWER_FAULT, ANSWER_HANG };

/* What came of it: a function's return, an instruction's code, a vector, or a code that the kernel repeats for ever. */
struct answer {
    s32 value;
    u8 kind;     /* enum answer_kind */
    u8 level;    /* of a lookup */
    u8 assigned; /* of a lookup */
    u64 lo, hi;  /* of RMPREAD */
};

enum field { FIELD_ADDRESS, FIELD_GPA, FIELD_COUNT, FIELD_ID, FIELD_LEVEL, FIELD_FLAG };
enum form { FORM_NUMBER, FORM_HEX, FORM_LEVEL, FORM_SIZE };

struct argument {
    const char *name;
    u8 field;  /* enum field */
    u8 form;   /* enum form */
    u8 flag;   /* of FIELD_FLAG */
    bool may_lack;
    u8 standin; /* for one that is not there */
};

#define ARGUMENTS 7
#define ARG_PFN {"pfn", FIELD_ADDRESS, FORM_HEX}
#define ARG_PA {"pa", FIELD_ADDRESS, FORM_HEX}
#define ARG_GPA {"gpa", FIELD_GPA, FORM_HEX}
#define ARG_LEVEL {"level", FIELD_LEVEL, FORM_LEVEL}
#define ARG_ASID {"asid", FIELD_ID, FORM_NUMBER}
#define ARG_PAGES {"pages", FIELD_COUNT, FORM_NUMBER}
#define ARG_ASSIGNED {"assigned", FIELD_FLAG, FORM_NUMBER, ASSIGNED}
#define ARG_SIZE {"size", FIELD_FLAG, FORM_SIZE, SIZE_2M}
#define ARG_IMMUTABLE {"immutable", FIELD_FLAG, FORM_NUMBER, IMMUTABLE, true, 0}
#define ARG_RESERVED {"reserved", FIELD_COUNT, FORM_HEX, 0, true, 0}
#define ARG_CODE {"code", FIELD_ID, FORM_NUMBER}
#define ARG_COUNT {"count", FIELD_COUNT, FORM_NUMBER, 0, true, 1}
#define ARG_ORDER {"order", FIELD_COUNT, FORM_NUMBER}

/* Names, arguments and their order are those of the ops in src/rmpcore/ops.py. */
static const struct spec {
    const char *name;
    struct argument arguments[ARGUMENTS];
} specs[OP_END] = {
    [OP_RMPUPDATE] = {"RMPUPDATE", {ARG_PA, ARG_GPA, ARG_ASSIGNED, ARG_SIZE, ARG_IMMUTABLE, ARG_ASID, ARG_RESERVED}},
    [OP_PSMASH] = {"PSMASH", {ARG_PA}},
    [OP_RMPREAD] = {"RMPREAD", {ARG_PA}},
    [OP_RMP_MAKE_PRIVATE] = {"rmp_make_private", {ARG_PFN, ARG_GPA, ARG_LEVEL, ARG_ASID, ARG_IMMUTABLE}},
    [OP_RMP_MAKE_SHARED] = {"rmp_make_shared", {ARG_PFN, ARG_LEVEL}},
    [OP_KERNEL_PSMASH] = {"psmash", {ARG_PFN}},
    [OP_SNP_LOOKUP_RMPENTRY] = {"snp_lookup_rmpentry", {ARG_PFN}},
    [OP_SET_MEMORY_4K] = {"set_memory_4k", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_RO] = {"set_memory_ro", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_RW] = {"set_memory_rw", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_NX] = {"set_memory_nx", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_X] = {"set_memory_x", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_NP] = {"set_memory_np", {ARG_PFN, ARG_PAGES}},
    [OP_SET_MEMORY_P] = {"set_memory_p", {ARG_PFN, ARG_PAGES}},
    [OP_SET_DIRECT_MAP_INVALID] = {"set_direct_map_invalid_noflush", {ARG_PFN}},
    [OP_SET_DIRECT_MAP_DEFAULT] = {"set_direct_map_default_noflush", {ARG_PFN}},
    [OP_INJECT] = {"inject", {ARG_CODE, ARG_COUNT}},
    [OP_ALLOC] = {"alloc", {ARG_ORDER}},
};

/* The kernel's function of that name; NULL: this kernel has none. */
static void *functions[OP_END];

static const char *const level_names[] = {NULL, "4K", "2M", "1G", "512G", "256T"};

static const char *code_name(u32 code)
{
    static const char *const names[] = {
        [RMPC_CODE_FAIL_INPUT] = " FAIL_INPUT",
        [RMPC_CODE_FAIL_PERMISSION] = " FAIL_PERMISSION",
        [RMPC_CODE_FAIL_INUSE] = " FAIL_INUSE",
        [RMPC_CODE_FAIL_OVERLAP] = " FAIL_OVERLAP",
        [RMPC_CODE_FAIL_SIZEMISMATCH] = " FAIL_SIZEMISMATCH",
        [RMPC_CODE_FAIL_BADADDR] = " FAIL_BADADDR",
    };

    return code < ARRAY_SIZE(names) && names[code] ? names[code] : "";
}

static u64 get_argument(const struct op *op, const struct argument *argument)
{
    switch (argument->field) {
    case FIELD_ADDRESS:
        return op->address;
    case FIELD_GPA:
        return op->gpa;
    case FIELD_COUNT:
        return op->count;
    case FIELD_ID:
        return op->id;
    case FIELD_LEVEL:
        return op->level;
    default:
        return !!(op->flags & argument->flag);
    }
}

/* False: too large. */
static bool put_argument(struct op *op, const struct argument *argument, u64 value)
{
    switch (argument->field) {
    case FIELD_ADDRESS:
        op->address = value;
        return true;
    case FIELD_GPA:
        op->gpa = value;
        return true;
    case FIELD_COUNT:
        op->count = value;
        return true;
    case FIELD_ID:
        op->id = (u32)value;
        return value <= U32_MAX;
    case FIELD_LEVEL:
        op->level = (u8)value;
        return value <= U8_MAX;
    default:
        op->flags |= value ? argument->flag : 0;
        return value <= 1;
    }
}

static bool parse_number(const char *text, enum form form, u64 *value)
{
    int i;

    if (form == FORM_SIZE) {
        *value = !strcmp(text, "2M");
        return *value || !strcmp(text, "4K");
    }
    for (i = 1; form == FORM_LEVEL && i < ARRAY_SIZE(level_names); i++) {
        if (!strcmp(text, level_names[i])) {
            *value = (u64)i;
            return true;
        }
    }
    return !kstrtoull(text, text[0] == '0' && (text[1] | 0x20) == 'x' ? 16 : 10, value);
}

/* Read a line, which is cut into words.  1: an op; 0: nothing but a comment; -EINVAL: nothing that can be done, and the
 * kernel's log has been told why. */
static int parse_op(char *line, struct op *op)
{
    const struct argument *argument;
    const struct spec *spec;
    char *name, *word;
    unsigned given = 0;
    int code, i;

    line[strcspn(line, "#")] = '\0';
    line = strim(line);
    if (!*line)
        return 0;
    name = strsep(&line, " \t\r");
    for (code = 0; code < OP_END && strcmp(name, specs[code].name); code++)
        ;
    if (code == OP_END) {
        pr_warn("no such call: %s\n", name);
        return -EINVAL;
    }
    spec = &specs[code];
    *op = (struct op){.code = (u8)code};
    while ((word = strsep(&line, " \t\r"))) {
        char *text = strchr(word, '=');
        u64 value;

        if (!*word)
            continue;
        if (!text) {
            pr_warn("%s: %s is not key=value\n", name, word);
            return -EINVAL;
        }
        *text++ = '\0';
        for (i = 0; i < ARGUMENTS && spec->arguments[i].name && strcmp(word, spec->arguments[i].name); i++)
            ;
        if (i == ARGUMENTS || !spec->arguments[i].name) {
            pr_warn("%s: unknown argument %s\n", name, word);
            return -EINVAL;
        }
        if (given & 1U << i) {
            pr_warn("%s: argument %s is given twice\n", name, word);
            return -EINVAL;
        }
        argument = &spec->arguments[i];
        if (!parse_number(text, argument->form, &value) || !put_argument(op, argument, value)) {
            pr_warn("%s: %s cannot be %s\n", name, word, *text ? text : "empty");
            return -EINVAL;
        }
        given |= 1U << i;
    }
    for (i = 0; i < ARGUMENTS && spec->arguments[i].name; i++) {
        argument = &spec->arguments[i];
        if (given & 1U << i)
            continue;
        if (!argument->may_lack) {
            pr_warn("%s: argument %s is missing\n", name, argument->name);
            return -EINVAL;
        }
        put_argument(op, argument, argument->standin);
    }
    return 1;
}

/* As format_op() in src/rmpcore/ops.py: what stands for itself is left out. */
static void show_op(struct seq_file *out, const struct op *op)
{
    const struct spec *spec = &specs[op->code];
    int i;

    seq_puts(out, spec->name);
    for (i = 0; i < ARGUMENTS && spec->arguments[i].name; i++) {
        const struct argument *argument = &spec->arguments[i];
        u64 value = get_argument(op, argument);

        if (argument->may_lack && value == argument->standin)
            continue;
        seq_printf(out, " %s=", argument->name);
        if (argument->form == FORM_HEX)
            seq_printf(out, "0x%llx", value);
        else if (argument->form == FORM_SIZE)
            seq_puts(out, value ? "2M" : "4K");
        else if (argument->form == FORM_LEVEL && value && value < ARRAY_SIZE(level_names))
            seq_puts(out, level_names[value]);
        else
            seq_printf(out, "%llu", value);
    }
}

/* As format_result() there. */
static void show_answer(struct seq_file *out, const struct op *op, const struct answer *answer)
{
    bool is_code = answer->kind == ANSWER_CODE || op->code == OP_KERNEL_PSMASH;

    if (answer->kind == ANSWER_HANG) {
        seq_printf(out, "= hangs,%s for ever", code_name((u32)answer->value));
        return;
    }
    if (answer->kind == ANSWER_FAULT) {
        if (answer->value == RMPC_VECTOR_PF)
            seq_printf(out, "= #PF error=0x%llx", answer->lo);
        else
            seq_puts(out, answer->value == RMPC_VECTOR_UD ? "= #UD" : "= #GP");
        return;
    }
    seq_printf(out, "= %d", answer->value);
    if (answer->value)
        seq_puts(out, is_code && answer->value > 0 ? code_name((u32)answer->value) : "");
    else if (op->code == OP_RMPREAD)
        seq_printf(out, " lo=0x%016llx hi=0x%016llx", answer->lo, answer->hi);
    else if (op->code == OP_SNP_LOOKUP_RMPENTRY && answer->level && answer->level < ARRAY_SIZE(level_names))
        seq_printf(out, " assigned=%u level=%s", answer->assigned, level_names[answer->level]);
    else if (op->code == OP_SNP_LOOKUP_RMPENTRY)
        seq_printf(out, " assigned=%u level=%u", answer->assigned, answer->level);
}

/* ---- the log ---- */

enum line_kind { LINE_INSTRUCTION, LINE_CALL };

struct line {
    struct op op;
    struct answer answer;
    u64 leaves[3]; /* of the direct map after a call: 4K, 2M, 1G */
    u32 repeats;   /* of an instruction */
    u8 kind;       /* enum line_kind */
};

/* Somebody in a call through /proc/rmpcore/call. */
struct caller {
    struct list_head others;
    struct task_struct *task;
    bool hangs; /* it would, but for overlap_limit */
};

/* An RMPUPDATE that keeps overlapping.  What counts is whose it is, not its CPU: tasks move, and two may share one. */
struct overlap {
    struct task_struct *task;
    unsigned long ip;
    u64 pa;
    uint times;
    u64 last; /* when it was seen; time is counted in overlaps */
};
#define OVERLAPS 16

/* Taken in the die notifier, so it has to spin under every kind of kernel. */
static DEFINE_RAW_SPINLOCK(log_lock);
static struct {
    struct line *lines;
    u64 written;
    struct list_head callers;
    struct overlap overlaps[OVERLAPS];
    u64 clock;
    u64 ended;
} record = {.callers = LIST_HEAD_INIT(record.callers)};

static u64 oldest_line(void)
{
    return record.written > log_size ? record.written - log_size : 0;
}

static void append(const struct line *line)
{
    record.lines[record.written++ % log_size] = *line;
}

/* The lock is held.  Has this RMPUPDATE, which has just overlapped, done so often enough? */
static bool overlaps_for_ever(unsigned long ip, u64 pa)
{
    struct overlap *found = &record.overlaps[0];
    struct caller *caller;
    int i;

    record.clock++;
    for (i = 0; i < OVERLAPS; i++) {
        struct overlap *overlap = &record.overlaps[i];

        if (overlap->task == current && overlap->ip == ip && overlap->pa == pa) {
            found = overlap;
            break;
        }
        if (overlap->last < found->last)
            found = overlap;
    }
    if (i == OVERLAPS)
        *found = (struct overlap){.task = current, .ip = ip, .pa = pa};
    found->last = record.clock;
    if (++found->times < READ_ONCE(overlap_limit) || !READ_ONCE(overlap_limit))
        return false;
    *found = (struct overlap){};
    record.ended++;
    list_for_each_entry(caller, &record.callers, others)
        if (caller->task == current)
            caller->hangs = true;
    return true;
}

/* The lock is held.  An RMPUPDATE of this task did something else, so what it repeated has ended. */
static void forget_overlaps(void)
{
    int i;

    for (i = 0; i < OVERLAPS; i++)
        if (record.overlaps[i].task == current)
            record.overlaps[i] = (struct overlap){};
}

/* The lock is held.  What the kernel repeats is one line with a count. */
static void log_instruction(const struct op *op, const struct answer *answer)
{
    struct line line = {.op = *op, .answer = *answer, .kind = LINE_INSTRUCTION};

    if (record.written && answer->value == RMPC_CODE_FAIL_OVERLAP) {
        struct line *last = &record.lines[(record.written - 1) % log_size];

        if (last->kind == LINE_INSTRUCTION && last->repeats < U32_MAX && !memcmp(&last->op, op, sizeof(*op)) &&
            !memcmp(&last->answer, answer, sizeof(*answer))) {
            last->repeats++;
            return;
        }
    }
    append(&line);
}

/* ---- instructions ---- */

/* Ends the repeating of an RMPUPDATE that overlaps for ever.  No instruction answers this code, so nobody takes it for
 * what a processor said; and no kernel repeats it, while the early revisions of the patches repeated FAIL_INUSE. */
#define CODE_ENDED 255

#define CODES 8 /* counted one by one; the last for all others */

struct processor {
    struct rmpc_cpu cpu;
    u64 codes[RMPC_INSN_END][CODES + 1];
    u64 faults;
    u64 waits; /* for another processor's work in the region */
};

static struct processor __percpu *processors;

/* Codes that the next instructions answer, on whichever CPU they run.  Guarded by log_lock; the core takes them out. */
static struct rmpc_cpu injector;

/* What an instruction's 16 bytes are, for the log. */
struct operand {
    struct rmpc_rmp_state state;
};

static bool read_operand(void *user, uint64_t va, struct rmpc_rmp_state *out, uint64_t *error)
{
    struct operand *operand = user;

    *error = 0; /* a read of the kernel from a page that is not there */
    if (copy_from_kernel_nofault(out, (const void *)(unsigned long)va, sizeof(*out)))
        return false;
    operand->state = *out;
    return true;
}

static bool write_operand(void *user, uint64_t va, const struct rmpc_rmp_state *data, uint64_t *error)
{
    struct operand *operand = user;

    *error = RMPC_FAULT_W;
    operand->state = *data;
    return kernel.write_nofault && !kernel.write_nofault((void *)(unsigned long)va, data, sizeof(*data));
}

static bool translate_operand(void *user, uint64_t va, struct rmpc_page *page, uint64_t *error)
{
    *error = 0; /* only for a guest's instructions, and these are left to the kernel */
    return false;
}

/* The instruction at ip, or as much of it as can be read. */
static size_t fetch(unsigned long ip, u8 *bytes, size_t size)
{
    const void *from = (const void *)ip;

    if (!copy_from_kernel_nofault(bytes, from, size))
        return size;
    size = PAGE_SIZE - offset_in_page(ip);
    return size >= 4 && size < 16 && !copy_from_kernel_nofault(bytes, from, size) ? size : 0;
}

static bool is_hosts(enum rmpc_insn insn)
{
    return insn == RMPC_INSN_RMPUPDATE || insn == RMPC_INSN_PSMASH || insn == RMPC_INSN_RMPREAD;
}

static void describe(enum rmpc_insn insn, u64 pa, const struct operand *operand, const struct rmpc_outcome *outcome,
                     struct op *op, struct answer *answer)
{
    const struct rmpc_rmp_state *state = &operand->state;

    memset(op, 0, sizeof(*op)); /* lines are compared byte by byte */
    memset(answer, 0, sizeof(*answer));
    op->address = pa;
    op->code = insn == RMPC_INSN_RMPUPDATE ? OP_RMPUPDATE : insn == RMPC_INSN_PSMASH ? OP_PSMASH : OP_RMPREAD;
    if (insn == RMPC_INSN_RMPUPDATE) {
        op->gpa = state->gpa;
        op->id = (u32)(state->high >> RMPC_STATE_ASID_SHIFT);
        op->count = state->high & RMPC_STATE_RESERVED;
        op->flags = (state->high & RMPC_STATE_ASSIGNED ? ASSIGNED : 0) |
                    (state->high & RMPC_STATE_SIZE_2M ? SIZE_2M : 0) |
                    (state->high & RMPC_STATE_IMMUTABLE ? IMMUTABLE : 0);
    }
    answer->value = (s32)outcome->code;
    answer->kind = outcome->kind == RMPC_OUTCOME_CODE ? ANSWER_CODE : ANSWER_FAULT;
    if (outcome->kind != RMPC_OUTCOME_CODE) {
        answer->lo = outcome->info;
    } else if (insn == RMPC_INSN_RMPREAD) {
        answer->lo = state->gpa;
        answer->hi = state->high;
    }
}

/* Is the next answer given beforehand?  Then the processor's queue has it. */
static bool take_injected(struct rmpc_cpu *cpu)
{
    struct rmpc_inject *queue = &injector.inject;
    bool taken = false;

    raw_spin_lock(&log_lock);
    if (queue->count) {
        taken = queue->runs[0].code;
        rmpc_cpu_inject(cpu, queue->runs[0].code, 1);
        if (!--queue->runs[0].count)
            memmove(&queue->runs[0], &queue->runs[1], --queue->count * sizeof(queue->runs[0]));
    }
    raw_spin_unlock(&log_lock);
    return taken;
}

/* Interrupts are off.  False: the exception stands. */
static bool emulate(struct pt_regs *regs, const u8 *bytes, size_t size, enum rmpc_insn insn)
{
    struct processor *processor = this_cpu_ptr(processors);
    struct rmpc_cpu *cpu = &processor->cpu;
    const u64 pa = regs->ax;
    struct operand operand = {};
    const struct rmpc_memory memory = {read_operand, write_operand, translate_operand, &operand};
    const bool injected = insn != RMPC_INSN_RMPREAD && take_injected(cpu);
    const struct rmpc_insn_counters before = cpu->counters;
    bool for_ever = false, repeat;
    struct rmpc_registers registers;
    struct rmpc_decoded decoded;
    struct rmpc_outcome outcome;
    struct answer answer;
    struct op op;

    do {
        registers = (struct rmpc_registers){regs->ax, regs->cx, regs->dx, regs->ip, regs->flags};
        cpu->counters = before;
        outcome = rmpc_insn_execute(&table.rmp, cpu, RMPC_MODE_LONG, bytes, size, &registers, &memory, &decoded);
        /* another CPU works in the region, for less than a microsecond */
        repeat = outcome.transient && !injected && !READ_ONCE(contention);
        processor->waits += repeat;
        if (repeat)
            cpu_relax();
    } while (repeat);
    if (injected && insn == RMPC_INSN_RMPUPDATE) /* the core did not look at the operand */
        copy_from_kernel_nofault(&operand.state, (const void *)regs->cx, sizeof(operand.state));

    describe(insn, pa, &operand, &outcome, &op, &answer);
    raw_spin_lock(&log_lock);
    log_instruction(&op, &answer);
    if (insn == RMPC_INSN_RMPUPDATE && !injected && outcome.code == RMPC_CODE_FAIL_OVERLAP)
        for_ever = overlaps_for_ever(regs->ip, pa);
    else if (insn == RMPC_INSN_RMPUPDATE)
        forget_overlaps();
    raw_spin_unlock(&log_lock);

    if (outcome.kind != RMPC_OUTCOME_CODE) {
        processor->faults++;
        return false;
    }
    processor->codes[insn][min_t(u32, outcome.code, CODES)]++;
    if (for_ever) {
        registers.rax = CODE_ENDED;
        pr_warn("RMPUPDATE of 0x%llx at %pS: FAIL_OVERLAP (4) %u times, really for ever; ended with code %d\n", pa,
                (void *)regs->ip, READ_ONCE(overlap_limit), CODE_ENDED);
    }
    regs->ax = registers.rax;
    regs->flags = registers.rflags;
    regs->ip = registers.rip;
    return true;
}

static int on_die(struct notifier_block *block, unsigned long what, void *data)
{
    const struct die_args *die = data;
    struct pt_regs *regs = die->regs;
    enum rmpc_insn insn;
    unsigned long flags;
    u8 bytes[15];
    size_t size;
    bool done;

    if (what != DIE_TRAP || die->trapnr != X86_TRAP_UD || !regs || user_mode(regs))
        return NOTIFY_DONE;
    size = fetch(regs->ip, bytes, sizeof(bytes));
    insn = rmpc_insn_decode(bytes, size, true).insn;
    if (!is_hosts(insn))
        return NOTIFY_DONE;
    local_irq_save(flags);
    done = emulate(regs, bytes, size, insn);
    local_irq_restore(flags);
    return done ? NOTIFY_STOP : NOTIFY_DONE;
}

static struct notifier_block die_block = {.notifier_call = on_die, .priority = 1000};

/* ---- frames that user space may give away ---- */

#define ALLOC_ORDER 10

struct block {
    struct list_head others;
    u64 pfn;
    u64 pages;
};

static LIST_HEAD(blocks);
static DEFINE_MUTEX(blocks_lock);

static int alloc_block(struct op *op)
{
    struct block *block;
    struct page *page;

    if (op->count > ALLOC_ORDER) {
        pr_warn("alloc: order is %llu, and at most %d\n", op->count, ALLOC_ORDER);
        return -EINVAL;
    }
    block = kmalloc(sizeof(*block), GFP_KERNEL);
    page = block ? alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN, (unsigned)op->count) : NULL;
    if (!page) {
        kfree(block);
        return -ENOMEM;
    }
    split_page(page, (unsigned)op->count); /* each is given back by itself */
    block->pfn = page_to_pfn(page);
    block->pages = 1ULL << op->count;
    op->address = block->pfn;
    mutex_lock(&blocks_lock);
    list_add(&block->others, &blocks);
    mutex_unlock(&blocks_lock);
    return 0;
}

/* Could the kernel use the page for anything? */
static bool is_whole(u64 pfn)
{
    const u64 first = pfn & ~(RMPC_REGION_FRAMES - 1);
    const u64 large = RMPC_RMP_ASSIGNED | RMPC_RMP_SIZE_2M;
    unsigned level;
    pte_t *entry = lookup_address((unsigned long)__va(PFN_PHYS(pfn)), &level);

    return !(entry_of(pfn).lo & RMPC_RMP_ASSIGNED) && (entry_of(first).lo & large) != large && entry &&
           (pte_flags(*entry) & (_PAGE_PRESENT | _PAGE_RW)) == (_PAGE_PRESENT | _PAGE_RW);
}

static void free_blocks(void)
{
    struct block *block, *next;
    u64 i, kept = 0;

    list_for_each_entry_safe(block, next, &blocks, others) {
        for (i = 0; i < block->pages; i++) {
            if (is_whole(block->pfn + i))
                __free_page(pfn_to_page(block->pfn + i));
            else
                kept++;
        }
        kfree(block);
        cond_resched();
    }
    if (kept)
        pr_warn("%llu pages stay allocated: still assigned, or not writable in the direct map\n", kept);
}

/* ---- calls ---- */

/* Execute an instruction as the kernel does.  False: it was #UD. */
#define EXECUTE(bytes, rax, rcx)                                                                                       \
    ({                                                                                                                 \
        unsigned done_ = 0;                                                                                            \
        asm volatile("1: .byte " bytes "\n\t"                                                                          \
                     "movl $1, %[done]\n"                                                                              \
                     "2:\n" _ASM_EXTABLE(1b, 2b)                                                                       \
                     : "+a"(rax), [done] "+r"(done_)                                                                   \
                     : "c"(rcx)                                                                                        \
                     : "memory", "cc");                                                                                \
        done_ != 0;                                                                                                    \
    })

static void execute(const struct op *op, struct answer *answer)
{
    struct rmpc_rmp_state state = rmpc_rmp_state_make(op->gpa, op->flags & ASSIGNED, op->flags & SIZE_2M,
                                                      op->flags & IMMUTABLE, op->id);
    unsigned long rax = op->address;
    bool done;

    if (op->code == OP_RMPUPDATE) {
        state.high |= op->count & RMPC_STATE_RESERVED;
        done = EXECUTE("0xf2, 0x0f, 0x01, 0xfe", rax, &state);
    } else if (op->code == OP_PSMASH) {
        done = EXECUTE("0xf3, 0x0f, 0x01, 0xff", rax, 0UL);
    } else {
        done = EXECUTE("0xf2, 0x0f, 0x01, 0xfd", rax, &state);
        answer->lo = state.gpa;
        answer->hi = state.high;
    }
    answer->kind = done ? ANSWER_CODE : ANSWER_FAULT;
    answer->value = done ? (s32)rax : RMPC_VECTOR_UD;
}

/* Frames that the direct map has. */
static bool are_frames(u64 pfn, u64 pages)
{
    u64 i;

    if (!pages || pages > INT_MAX || pfn > *kernel.max_pfn || pages > *kernel.max_pfn - pfn)
        return false;
    for (i = 0; i < pages; i++) {
        if (!pfn_valid(pfn + i))
            return false;
        if (!(i % RMPC_REGION_FRAMES))
            cond_resched();
    }
    return true;
}

/* Let the running kernel do it. */
static int call_kernel(const struct op *op, struct answer *answer)
{
    const enum pg_level level = (enum pg_level)op->level;
    void *function = functions[op->code];

    if (!function) {
        pr_warn("%s: this kernel has no such function\n", specs[op->code].name);
        return -ENOSYS;
    }
    switch (op->code) {
    case OP_RMP_MAKE_PRIVATE:
        answer->value = ((private_fn *)function)(op->address, op->gpa, level, op->id, op->flags & IMMUTABLE);
        return 0;
    case OP_RMP_MAKE_SHARED:
        answer->value = ((shared_fn *)function)(op->address, level);
        return 0;
    case OP_KERNEL_PSMASH:
        answer->value = ((psmash_fn *)function)(op->address);
        return 0;
    case OP_SNP_LOOKUP_RMPENTRY: {
        bool assigned = false;
        int size = 0;

        answer->value = ((lookup_rmpentry_fn *)function)(op->address, &assigned, &size);
        answer->assigned = assigned;
        answer->level = (u8)size;
        return 0;
    }
    case OP_SET_DIRECT_MAP_INVALID:
    case OP_SET_DIRECT_MAP_DEFAULT:
        if (!are_frames(op->address, 1))
            break;
        answer->value = ((direct_map_fn *)function)(pfn_to_page(op->address));
        return 0;
    default:
        if (!are_frames(op->address, op->count))
            break;
        answer->value = ((set_memory_fn *)function)((unsigned long)__va(PFN_PHYS(op->address)), (int)op->count);
        return 0;
    }
    pr_warn("%s: not all of these are frames of memory\n", specs[op->code].name);
    return -EINVAL;
}

static int inject(const struct op *op)
{
    enum rmpc_status status;
    unsigned long flags;

    raw_spin_lock_irqsave(&log_lock, flags);
    status = rmpc_cpu_inject(&injector, op->id, op->count);
    raw_spin_unlock_irqrestore(&log_lock, flags);
    if (status == RMPC_OK)
        return 0;
    pr_warn("inject: %s\n", rmpc_status_text(status));
    return -EINVAL;
}

static int carry_out(struct op *op, struct answer *answer)
{
    switch (op->code) {
    case OP_RMPUPDATE:
    case OP_PSMASH:
    case OP_RMPREAD:
        execute(op, answer);
        return 0;
    case OP_INJECT:
        return inject(op);
    case OP_ALLOC:
        return alloc_block(op);
    default:
        return call_kernel(op, answer);
    }
}

static DEFINE_MUTEX(call_lock);

/* One line of /proc/rmpcore/call. */
static int call(char *text)
{
    struct caller me = {.task = current};
    struct line line = {.kind = LINE_CALL};
    bool in_order = READ_ONCE(serial);
    unsigned long flags;
    int error, i;

    error = parse_op(text, &line.op);
    if (error <= 0)
        return error;
    if (in_order && mutex_lock_interruptible(&call_lock))
        return -EINTR;
    raw_spin_lock_irqsave(&log_lock, flags);
    list_add(&me.others, &record.callers);
    raw_spin_unlock_irqrestore(&log_lock, flags);

    error = carry_out(&line.op, &line.answer);
    for (i = 0; kernel.direct_pages_count && i < 3; i++)
        line.leaves[i] = READ_ONCE(kernel.direct_pages_count[PG_LEVEL_4K + i]);

    raw_spin_lock_irqsave(&log_lock, flags);
    list_del(&me.others);
    if (me.hangs)
        line.answer = (struct answer){.kind = ANSWER_HANG, .value = RMPC_CODE_FAIL_OVERLAP};
    if (!error)
        append(&line);
    raw_spin_unlock_irqrestore(&log_lock, flags);
    if (in_order)
        mutex_unlock(&call_lock);
    return error;
}

static bool stopping; /* the module is being removed */

/* /proc/rmpcore/call: a line ends with a newline, wherever one write ends and the next begins.  The last one may end
 * with the file. */
struct input {
    char line[256];
    size_t length;
};

static int call_open(struct inode *inode, struct file *file)
{
    file->private_data = kzalloc(sizeof(struct input), GFP_KERNEL);
    return file->private_data ? 0 : -ENOMEM;
}

static int end_line(struct input *input)
{
    input->line[input->length] = '\0';
    input->length = 0;
    return call(input->line);
}

static int take_character(struct input *input, char character)
{
    if (character == '\n')
        return end_line(input);
    if (input->length == sizeof(input->line) - 1) {
        pr_warn("a line is longer than %zu bytes\n", input->length);
        return -EINVAL;
    }
    if (!character) {
        pr_warn("a line has a zero byte\n");
        return -EINVAL;
    }
    input->line[input->length++] = character;
    return 0;
}

static ssize_t call_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
    struct input *input = file->private_data;
    char *piece = (char *)__get_free_page(GFP_KERNEL);
    size_t done = 0;
    int error = 0;

    if (!piece)
        return -ENOMEM;
    while (done < count && !error) {
        size_t size = min_t(size_t, count - done, PAGE_SIZE), i;

        if (copy_from_user(piece, from + done, size)) {
            error = -EFAULT;
            break;
        }
        for (i = 0; i < size && !error; i++)
            error = take_character(input, piece[i]);
        done += size;
        cond_resched();
        if (!error && done < count && signal_pending(current))
            break;
    }
    free_page((unsigned long)piece);
    if (error)
        input->length = 0; /* what came before the bad line is done, what comes behind it is not */
    return error ? error : (ssize_t)done;
}

static int call_release(struct inode *inode, struct file *file)
{
    struct input *input = file->private_data;

    /* nobody is told of an error but the kernel's log; and half a line of a writer who was stopped is none */
    if (input->length && !READ_ONCE(stopping) && !(current->flags & PF_EXITING && current->exit_code & 0x7f))
        end_line(input);
    kfree(input);
    return 0;
}

static const struct proc_ops call_ops = {
    .proc_open = call_open,
    .proc_write = call_write,
    .proc_release = call_release,
};

/* ---- /proc/rmpcore/log ---- */

struct log_reader {
    u64 begin, end; /* lines there were when it was opened */
    u64 lost;       /* lines that have been overwritten since, before the next one to show */
    struct line line;
};

/* The line at a position, the first that is still there: position 0 is the head, then lines count from 1. */
static void *log_at(struct log_reader *reader, loff_t *position)
{
    unsigned long flags;
    u64 number = max_t(u64, (u64)*position - 1, reader->begin);
    bool found;

    raw_spin_lock_irqsave(&log_lock, flags);
    if (number < oldest_line()) {
        reader->lost += oldest_line() - number;
        number = oldest_line();
    }
    found = number < reader->end;
    if (found)
        reader->line = record.lines[number % log_size];
    raw_spin_unlock_irqrestore(&log_lock, flags);
    *position = (loff_t)number + 1;
    return found ? reader : NULL;
}

static void *log_start(struct seq_file *out, loff_t *position)
{
    return *position ? log_at(out->private, position) : SEQ_START_TOKEN;
}

static void *log_next(struct seq_file *out, void *item, loff_t *position)
{
    struct log_reader *reader = out->private;

    ++*position;
    reader->lost = 0;
    return log_at(reader, position);
}

static void log_stop(struct seq_file *out, void *item)
{
}

static int log_show(struct seq_file *out, void *item)
{
    struct log_reader *reader = out->private;
    const struct line *line = &reader->line;

    if (item == SEQ_START_TOKEN) {
        seq_printf(out, "# rmpcore: kernel %s, RMP as on %s, 0x%llx frames\n", init_utsname()->release, hardware,
                   table.frames);
        if (reader->begin)
            seq_printf(out, "# %llu lines before the first were dropped\n", reader->begin);
        return 0;
    }
    if (reader->lost)
        seq_printf(out, "# %llu lines were dropped here while this was read\n", reader->lost);
    if (line->kind == LINE_INSTRUCTION) {
        seq_puts(out, "# ");
        show_op(out, &line->op);
        seq_puts(out, "  ");
        show_answer(out, &line->op, &line->answer);
        if (line->repeats)
            seq_printf(out, "  (%u times more)", line->repeats);
    } else if (line->op.code == OP_ALLOC) {
        seq_puts(out, "# ");
        show_op(out, &line->op);
        seq_printf(out, " pfn=0x%llx", line->op.address);
    } else {
        show_op(out, &line->op);
        if (line->op.code != OP_INJECT) {
            seq_puts(out, "  # ");
            show_answer(out, &line->op, &line->answer);
            if (kernel.direct_pages_count)
                seq_printf(out, "  4k=%llu 2m=%llu 1g=%llu", line->leaves[0], line->leaves[1], line->leaves[2]);
        }
    }
    seq_putc(out, '\n');
    return 0;
}

static const struct seq_operations log_seq = {log_start, log_stop, log_next, log_show};

static int log_open(struct inode *inode, struct file *file)
{
    struct log_reader *reader = __seq_open_private(file, &log_seq, sizeof(*reader));
    unsigned long flags;

    if (!reader)
        return -ENOMEM;
    raw_spin_lock_irqsave(&log_lock, flags);
    reader->begin = oldest_line();
    reader->end = record.written;
    raw_spin_unlock_irqrestore(&log_lock, flags);
    return 0;
}

static const struct proc_ops log_ops = {
    .proc_open = log_open,
    .proc_read = seq_read,
    .proc_lseek = seq_lseek,
    .proc_release = seq_release_private,
};

/* ---- /proc/rmpcore/state ---- */

static void *state_at(loff_t *position)
{
    u64 pfn = next_used((u64)*position);

    *position = (loff_t)pfn;
    return pfn < table.frames ? position : NULL;
}

static void *state_start(struct seq_file *out, loff_t *position)
{
    return state_at(position);
}

static void *state_next(struct seq_file *out, void *item, loff_t *position)
{
    ++*position;
    return fatal_signal_pending(current) ? NULL : state_at(position);
}

static int state_show(struct seq_file *out, void *item)
{
    u64 pfn = (u64)*(loff_t *)item;
    struct rmpc_rmp_entry entry = entry_of(pfn);

    seq_printf(out, "pfn=0x%llx lo=0x%016llx hi=0x%016llx\n", pfn, entry.lo, entry.hi);
    return 0;
}

static const struct seq_operations state_seq = {state_start, log_stop, state_next, state_show};

/* ---- /proc/rmpcore/counters ---- */

static int counters_show(struct seq_file *out, void *item)
{
    static const struct {
        const char *name;
        enum rmpc_insn insn;
        size_t counter;
    } rows[] = {
        {"RMPUPDATE", RMPC_INSN_RMPUPDATE, offsetof(struct rmpc_insn_counters, rmpupdate)},
        {"PSMASH", RMPC_INSN_PSMASH, offsetof(struct rmpc_insn_counters, psmash)},
        {"RMPREAD", RMPC_INSN_RMPREAD, offsetof(struct rmpc_insn_counters, rmpread)},
    };
    u64 faults = 0, waits = 0, small = 0, large = 0, pfn;
    int cpu, row, code;

    for (row = 0; row < ARRAY_SIZE(rows); row++) {
        u64 codes[CODES + 1] = {}, all = 0;

        for_each_possible_cpu(cpu) {
            const struct processor *processor = per_cpu_ptr(processors, cpu);

            all += *(const u64 *)((const char *)&processor->cpu.counters + rows[row].counter);
            for (code = 0; code <= CODES; code++)
                codes[code] += processor->codes[rows[row].insn][code];
        }
        seq_printf(out, "%s %llu\n", rows[row].name, all);
        for (code = 0; code <= CODES; code++)
            if (codes[code] && code < CODES)
                seq_printf(out, "%s = %d%s %llu\n", rows[row].name, code, code_name((u32)code), codes[code]);
            else if (codes[code])
                seq_printf(out, "%s = other %llu\n", rows[row].name, codes[code]);
    }
    for_each_possible_cpu(cpu) {
        faults += per_cpu_ptr(processors, cpu)->faults;
        waits += per_cpu_ptr(processors, cpu)->waits;
    }
    for (pfn = next_used(0); pfn < table.frames; pfn = next_used(pfn + 1)) {
        u64 lo = entry_of(pfn).lo;

        if (lo & RMPC_RMP_ASSIGNED)
            ++*(lo & RMPC_RMP_SIZE_2M ? &large : &small);
    }
    seq_printf(out, "faults %llu\n", faults);
    seq_printf(out, "waits %llu\n", waits);
    seq_printf(out, "ended %llu\n", READ_ONCE(record.ended));
    seq_printf(out, "assigned_4k %llu\n", small);
    seq_printf(out, "assigned_2m %llu\n", large);
    seq_printf(out, "assigned_pages %llu\n", small + large * RMPC_REGION_FRAMES);
    return 0;
}

/* ---- switching the kernel's code on and off ---- */

/* A variable of the kernel that was changed. */
static struct {
    void *address;
    size_t size;
    u64 before;
} changed[8];
static int changes;

/* What the kernel has for a segment of the RMP, from 6.14 on. */
struct kernel_segment {
    struct rmpc_rmp_entry *entries;
    u64 max_index;
    u64 size;
};

static struct kernel_segment kernel_segment;
static struct kernel_segment **kernel_segments; /* a page */

/* Write a variable of the kernel's image that may lie in memory which is read-only after boot: through another mapping
 * of its page. */
static int write_variable(void *address, size_t size, u64 value)
{
    struct page *page = pfn_to_page(PHYS_PFN(__pa_symbol(address)));
    void *window = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
    void *there = window + offset_in_page(address);

    if (!window)
        return -ENOMEM;
    if (size == sizeof(u64))
        WRITE_ONCE(*(u64 *)there, value);
    else
        WRITE_ONCE(*(u32 *)there, (u32)value);
    vunmap(window);
    return 0;
}

static u64 read_variable(const void *address, size_t size)
{
    return size == sizeof(u64) ? READ_ONCE(*(const u64 *)address) : READ_ONCE(*(const u32 *)address);
}

static int change(void *address, size_t size, u64 value)
{
    u64 before = read_variable(address, size);
    int error = write_variable(address, size, value);

    if (error)
        return error;
    changed[changes].address = address;
    changed[changes].size = size;
    changed[changes].before = before;
    changes++;
    return 0;
}

/* Put things back until so many changes are left.  The kernel must not keep what points to this module, so there is no
 * way to fail but to try again. */
static void undo(int left)
{
    while (changes > left) {
        changes--;
        while (write_variable(changed[changes].address, changed[changes].size, changed[changes].before))
            msleep(10);
    }
}

static int point_to_table(void)
{
    u64 *entries = find("rmptable"), *last = find("rmptable_max_pfn");
    u64 *segments = find("rmp_segment_table"), *mask = find("rmp_segment_mask");
    u32 *count = find("rst_max_index"), *shift = find("rmp_segment_shift");
    int error;

    if (entries && last) { /* up to 6.13 */
        if (*entries)
            return -EBUSY;
        error = change(entries, sizeof(u64), (u64)table.segment.entries);
        return error ? error : change(last, sizeof(u64), table.frames - 1);
    }
    if (!segments || !mask || !count || !shift)
        return -EOPNOTSUPP;
    if (*segments)
        return -EBUSY;
    /* one segment, which is as large as all physical memory can be */
    kernel_segments = (void *)get_zeroed_page(GFP_KERNEL);
    if (!kernel_segments)
        return -ENOMEM;
    kernel_segment = (struct kernel_segment){table.segment.entries, table.frames, table.frames * RMPC_RMP_ENTRY_SIZE};
    kernel_segments[0] = &kernel_segment;
    error = change(mask, sizeof(u64), RMPC_PHYSICAL_LIMIT - 1);
    if (!error)
        error = change(shift, sizeof(u32), 52);
    if (!error)
        error = change(count, sizeof(u32), 1);
    return error ? error : change(segments, sizeof(u64), (u64)kernel_segments);
}

static int flags_from; /* changes of the flags begin here, those of the table come before */

/* Changes that were made are undone by the caller if this fails. */
static int switch_on(void)
{
    u32 *vendor = find("cc_vendor");
    u64 *flags = find("cc_flags"); /* bit 0: the host has SNP */
    int error;

    if (!vendor || !flags || !functions[OP_RMP_MAKE_PRIVATE]) {
        pr_info("this kernel has no SNP host code (it came with 6.9): only the instructions work\n");
        return 0;
    }
    if (*vendor != CC_VENDOR_NONE && *vendor != CC_VENDOR_AMD) {
        pr_err("this is a confidential guest of another kind (cc_vendor %u)\n", *vendor);
        return -EBUSY;
    }
    error = *flags & 1 ? -EBUSY : point_to_table();
    if (error == -EOPNOTSUPP) {
        pr_info("this kernel's SNP host code keeps its table in a way that is not known: only the instructions work\n");
        return 0;
    }
    if (error == -EBUSY)
        pr_err("this kernel has an RMP\n");
    if (error)
        return error;
    smp_wmb(); /* the table before whoever looks for it */
    flags_from = changes;
    error = change(vendor, sizeof(u32), CC_VENDOR_AMD);
    if (!error)
        error = change(flags, sizeof(u64), *flags | 1);
    if (!error)
        pr_info("the kernel's SNP host code is on\n");
    return error;
}

/* First nobody begins anything more, then what has begun comes to an end, then the table goes. */
static void switch_off(void)
{
    if (!changes)
        return;
    undo(flags_from);
    synchronize_rcu_tasks();
    msleep(20);
    undo(0);
    synchronize_rcu_tasks();
    free_page((unsigned long)kernel_segments);
}

static int find_symbols(void)
{
    int error = find_lookup(), code;

    if (error) {
        pr_err("no kprobe to find the kernel's symbols with: %d\n", error);
        return -EOPNOTSUPP;
    }
    kernel.max_pfn = find("max_pfn");
    if (!kernel.max_pfn)
        return -EOPNOTSUPP;
    kernel.direct_pages_count = find("direct_pages_count");
    kernel.write_nofault = find("copy_to_kernel_nofault");
    for (code = OP_RMP_MAKE_PRIVATE; code <= OP_SET_DIRECT_MAP_DEFAULT; code++)
        functions[code] = find(specs[code].name);
    return 0;
}

static int make_files(void)
{
    struct proc_dir_entry *directory = proc_mkdir("rmpcore", NULL);

    if (directory && proc_create("call", 0200, directory, &call_ops) &&
        proc_create("log", 0400, directory, &log_ops) && proc_create_seq("state", 0400, directory, &state_seq) &&
        proc_create_single("counters", 0400, directory, counters_show))
        return 0;
    if (directory)
        proc_remove(directory);
    return -ENOMEM;
}

static void free_memory(void)
{
    free_table();
    vfree(record.lines);
    free_percpu(processors);
}

static int __init start(void)
{
    int error;

    /* with it, functions that the kernel does not export are no targets of calls by pointer */
#ifdef CONFIG_X86_KERNEL_IBT
    if (boot_cpu_has(X86_FEATURE_IBT)) {
        pr_err("indirect branch tracking is on; boot with ibt=off\n");
        return -EOPNOTSUPP;
    }
#endif
    if (!log_size)
        return -EINVAL;
    error = find_symbols();
    if (error)
        return error;
    processors = alloc_percpu(struct processor);
    record.lines = vzalloc((size_t)log_size * sizeof(*record.lines));
    error = processors && record.lines ? make_table() : -ENOMEM;
    if (!error)
        error = register_die_notifier(&die_block);
    if (error)
        goto no_notifier;
    if (host)
        error = switch_on();
    if (!error)
        error = make_files();
    if (!error)
        return 0;
    switch_off();
    unregister_die_notifier(&die_block);
no_notifier:
    free_memory();
    return error;
}

static void __exit stop(void)
{
    WRITE_ONCE(stopping, true);
    remove_proc_subtree("rmpcore", NULL); /* waits for calls */
    switch_off();
    unregister_die_notifier(&die_block);
    free_blocks();
    free_memory();
}

module_init(start);
module_exit(stop);
