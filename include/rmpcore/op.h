/*
 * Ops: one instruction, kernel call or model control each, as fixed-size records.
 *
 * An op applied to a machine gives a result and a new state.  Records have the same layout as OP_DTYPE and
 * RESULT_DTYPE in Python, so that a million ops cross the language border in one call; the list of ops with
 * the text form of each is in docs/formats.md.
 */
#ifndef RMPCORE_OP_H
#define RMPCORE_OP_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "cpa.h"
#include "snp_host.h"

RMPC_BEGIN_DECLS

enum rmpc_op_code {
    /* instructions */
    RMPC_OP_INSN_RMPUPDATE = 1, /* addr: RAX; gpa; flags; id: ASID; count: extra bits of the input's high quadword */
    RMPC_OP_INSN_PSMASH = 2,    /* addr: RAX */
    RMPC_OP_INSN_RMPREAD = 3,   /* addr: RAX */
    /* kernel functions */
    RMPC_OP_RMPUPDATE = 4,        /* addr: frame; gpa; flags; id: ASID */
    RMPC_OP_RMP_MAKE_PRIVATE = 5, /* addr: frame; gpa; level; id: ASID; flags: immutable */
    RMPC_OP_RMP_MAKE_FIRMWARE = 6, /* addr: frame; level */
    RMPC_OP_RMP_MAKE_SHARED = 7,   /* addr: frame; level */
    RMPC_OP_PSMASH = 8,            /* addr: frame */
    RMPC_OP_SNP_LOOKUP_RMPENTRY = 9, /* addr: frame */
    RMPC_OP_ADJUST_DIRECT_MAP = 10,  /* addr: frame; level */
    RMPC_OP_DUMP_RMPENTRY = 11,      /* addr: frame */
    RMPC_OP_SNP_LEAK_PAGES = 12,     /* addr: frame; count: pages */
    RMPC_OP_LOOKUP = 13,             /* addr: frame */
    RMPC_OP_SET_MEMORY_4K = 14,      /* this and the others marked CPA: addr: frame; count: pages; level: flavour;
                                        flags: high */
    RMPC_OP_SET_DIRECT_MAP_INVALID_NOFLUSH = 15, /* addr: frame */
    RMPC_OP_SET_DIRECT_MAP_DEFAULT_NOFLUSH = 16, /* addr: frame */
    RMPC_OP_SET_DIRECT_MAP_VALID_NOFLUSH = 17,   /* addr: frame; count: pages; flags: valid */
    /* controls of the model */
    RMPC_OP_INJECT = 18,     /* id: code; count: instructions */
    RMPC_OP_FAIL_ALLOC = 19, /* addr: allocations that succeed first; count: allocations that fail */
    /* kernel functions again */
    RMPC_OP_SET_MEMORY_RO = 20, /* CPA, as all to SET_MEMORY_DECRYPTED */
    RMPC_OP_SET_MEMORY_RW = 21,
    RMPC_OP_SET_MEMORY_ROX = 22,
    RMPC_OP_SET_MEMORY_NX = 23,
    RMPC_OP_SET_MEMORY_X = 24,
    RMPC_OP_SET_MEMORY_NP = 25,
    RMPC_OP_SET_MEMORY_P = 26,
    RMPC_OP_SET_MEMORY_NP_NOALIAS = 27,
    RMPC_OP_SET_MEMORY_GLOBAL = 28,
    RMPC_OP_SET_MEMORY_NONGLOBAL = 29,
    RMPC_OP_SET_MEMORY_UC = 30,
    RMPC_OP_SET_MEMORY_WC = 31,
    RMPC_OP_SET_MEMORY_WB = 32,
    RMPC_OP_SET_MEMORY_ENCRYPTED = 33,
    RMPC_OP_SET_MEMORY_DECRYPTED = 34,
    RMPC_OP_CHANGE_PAGE_ATTR_SET = 35,   /* CPA; gpa: entry bits in small form */
    RMPC_OP_CHANGE_PAGE_ATTR_CLEAR = 36, /* CPA; gpa: entry bits in small form */
    /* control of the model: list an address for the array flavours */
    RMPC_OP_CPA_ADDRESS = 37, /* addr: frame; flags: high */
    /* instructions of guests.  va: RAX; rcx, rdx; addr, gpa, level: where va is translated to; id: ASID; flags: user;
       mode: vmpl, plain */
    RMPC_OP_INSN_PVALIDATE = 38,
    RMPC_OP_INSN_RMPADJUST = 39,
    RMPC_OP_INSN_RMPQUERY = 40, /* no rcx */
    /* pages in use */
    RMPC_OP_VMRUN = 41,  /* addr: VMCB; va: VMSA; gpa: of the VMSA; count: AVIC page; id: ASID; mode: plain */
    RMPC_OP_VMEXIT = 42, /* addr: VMCB */
    /* accesses */
    RMPC_OP_ACCESS = 43, /* addr; level; gpa; id: ASID; va; flags: user; mode: who, access, vmpl, c */
    RMPC_OP_HOST_READ = 44,  /* addr: frame */
    RMPC_OP_HOST_WRITE = 45, /* addr: frame */
    /* commands of the firmware.  addr: the page; va: the guest's context page */
    RMPC_OP_SNP_INIT = 46,            /* addr: first frame of the IOMMU's buffers; count: frames */
    RMPC_OP_SNP_SHUTDOWN = 47,        /* mode: iommu */
    RMPC_OP_SNP_GCTX_CREATE = 48,     /* addr: the context page */
    RMPC_OP_SNP_ACTIVATE = 49,        /* addr: the context page; id: ASID */
    RMPC_OP_SNP_DECOMMISSION = 50,    /* addr: the context page */
    RMPC_OP_SNP_LAUNCH_UPDATE = 51,   /* flags: size; level: type; count: permission bytes, VMPL1's in bits 15:8 ... */
    RMPC_OP_SNP_PAGE_RECLAIM = 52,    /* addr: bit 0 is the size */
    RMPC_OP_SNP_PAGE_SET_STATE = 53,  /* count: frames */
    RMPC_OP_SNP_PAGE_MOVE = 54,       /* gpa: destination; flags: size */
    RMPC_OP_SNP_PAGE_UNSMASH = 55,
    RMPC_OP_SNP_MD_INIT = 56,
    RMPC_OP_SNP_PAGE_SWAP_OUT = 57, /* gpa: destination; count: metadata record; flags: size */
    RMPC_OP_SNP_PAGE_SWAP_IN = 58,  /* the same */
    /* kernel functions again */
    RMPC_OP_RMP_MARK_PAGES_FIRMWARE = 59, /* addr: frame; count: pages */
    RMPC_OP_SNP_RECLAIM_PAGES = 60,       /* addr: frame; count: pages */
    /* control of the model */
    RMPC_OP_PAGE_STATE = 61, /* addr: frame */
    /* accesses again */
    RMPC_OP_KVM_READ_GUEST = 62,  /* addr: frame */
    RMPC_OP_KVM_WRITE_GUEST = 63, /* addr: frame */
    RMPC_OP_END
};

enum rmpc_op_flag {
    RMPC_OP_ASSIGNED = 1 << 0,
    RMPC_OP_SIZE_2M = 1 << 1,
    RMPC_OP_IMMUTABLE = 1 << 2,
    RMPC_OP_VALID = 1 << 3,
    RMPC_OP_GUEST = 1 << 4, /* executed with a non-zero current ASID */
    RMPC_OP_USER = 1 << 5,  /* executed at CPL 3 */
    RMPC_OP_HIGH = 1 << 6   /* the frame's address in the high mapping */
};

/* How a CPA op says which pages it means (its level). */
enum rmpc_flavour {
    RMPC_FLAVOUR_RANGE = 0, /* count pages from addr */
    RMPC_FLAVOUR_ARRAY = 1, /* the first count addresses listed; addr is 0.  The list is empty afterwards */
    RMPC_FLAVOUR_PAGES = 2, /* likewise, and none of them in the high mapping */
    RMPC_FLAVOUR_END
};

/* Bits of mode. */
#define RMPC_MODE_WHO UINT32_C(0xff) /* enum rmpc_who */
#define RMPC_MODE_ACCESS UINT32_C(0xff00) /* enum rmpc_access_kind */
#define RMPC_MODE_ACCESS_SHIFT 8
#define RMPC_MODE_VMPL UINT32_C(0xff0000)
#define RMPC_MODE_VMPL_SHIFT 16
#define RMPC_MODE_C (UINT32_C(1) << 24)     /* the guest's mapping is private */
#define RMPC_MODE_PLAIN (UINT32_C(1) << 25) /* the guest is none with SNP */
#define RMPC_MODE_IOMMU (UINT32_C(1) << 26)

struct rmpc_op {
    uint16_t op; /* enum rmpc_op_code */
    uint8_t level;
    uint8_t flags; /* enum rmpc_op_flag */
    uint32_t id;
    uint64_t addr;
    uint64_t gpa;
    uint64_t count;
    uint64_t va;
    uint64_t rcx;
    uint64_t rdx;
    uint32_t mode;     /* RMPC_MODE_* */
    uint32_t reserved; /* 0 */
};
static_assert(sizeof(struct rmpc_op) == 64, "op records cross to other languages");

/* What ret is. */
enum rmpc_result_kind {
    RMPC_RESULT_KERNEL = 0,  /* a kernel function's return */
    RMPC_RESULT_CODE = 1,    /* an instruction's EAX */
    RMPC_RESULT_FAULT = 2,   /* an exception's vector; value: error code; value2: CR2 */
    RMPC_RESULT_HANG = 3,    /* the code that makes the kernel repeat its instruction for ever */
    RMPC_RESULT_REFUSED = 4, /* enum rmpc_status: the model cannot do this op; the state is untouched */
    RMPC_RESULT_NPF = 5,      /* RMPC_VMEXIT_NPF; value: EXITINFO1; value2: EXITINFO2 */
    RMPC_RESULT_INVALID = 6,  /* -1: #VMEXIT(INVALID) */
    RMPC_RESULT_IOMMU = 7,    /* an event's code; value2: address */
    RMPC_RESULT_FIRMWARE = 8, /* enum rmpc_firmware_status */
    RMPC_RESULT_ALLOWED = 9,  /* 0: an access passes */
    RMPC_RESULT_END
};

enum rmpc_result_flag {
    RMPC_RESULT_ASSIGNED = 1 << 0, /* snp_lookup_rmpentry */
    RMPC_RESULT_RW = 1 << 1,       /* lookup: RW at all levels above the entry */
    RMPC_RESULT_NX = 1 << 2,       /* lookup: NX at some level above the entry */
    RMPC_RESULT_CF = 1 << 3        /* PVALIDATE: the page was as asked already */
};

struct rmpc_result {
    int32_t ret;
    uint8_t kind;  /* enum rmpc_result_kind */
    uint8_t level; /* snp_lookup_rmpentry, lookup, host_read, host_write (0: nothing there) */
    uint8_t flags; /* enum rmpc_result_flag */
    uint8_t reason;  /* enum rmpc_reason */
    uint64_t value;  /* lookup: raw entry; RMPREAD: low quadword; RMPQUERY: RCX */
    uint64_t value2; /* RMPREAD: high quadword; RMPQUERY: RDX */
};
static_assert(sizeof(struct rmpc_result) == 24, "result records cross to other languages");

#define RMPC_ADDRESSES 1024

/* A machine: everything that ops act on.  host.rmp may be NULL; host.cpu and host.firmware may not.
 *   addresses  virtual addresses listed for the array flavours, the first address_count of them */
struct rmpc_machine {
    struct rmpc_mem *mem;
    struct rmpc_host host;
    uint64_t addresses[RMPC_ADDRESSES];
    size_t address_count;
};

/* The op's name in the text form; NULL: no such op. */
const char *rmpc_op_name(unsigned op);

/* Flags that an op uses (enum rmpc_op_flag).  A record with others, or with anything but 0 in a field that the
 * op does not use, is refused. */
unsigned rmpc_op_flags(unsigned op);

/* What came of an instruction or an access, as a result: kind, ret, flags, reason, value and value2. */
void rmpc_result_of(struct rmpc_outcome outcome, struct rmpc_result *result);

/* Bits of mode that an op uses. */
uint32_t rmpc_op_mode(unsigned op);

void rmpc_machine_apply(struct rmpc_machine *machine, const struct rmpc_op *op, struct rmpc_result *result);

/* The ops in order; results has room for count. */
void rmpc_machine_run(struct rmpc_machine *machine, const struct rmpc_op *ops, size_t count,
                      struct rmpc_result *results);

RMPC_END_DECLS

#endif
