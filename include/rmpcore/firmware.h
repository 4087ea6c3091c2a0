/*
 * Page states, and the commands of the SEV firmware that change them (rules: docs/rmp.md, section 4).
 *
 * Commands give a status of AMD's ABI specification 56860 and change nothing unless it is SUCCESS.  What they do to the
 * contents of pages is not modelled.  One thread at a time sends commands; but for SNP_INIT and SNP_SHUTDOWN they may
 * run beside RMP instructions.
 * Addresses are in bytes.
 */
#ifndef RMPCORE_FIRMWARE_H
#define RMPCORE_FIRMWARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "event.h"
#include "rmp_table.h"

RMPC_BEGIN_DECLS

enum rmpc_page_state {
    RMPC_PAGE_DEFAULT, /* no entry: not covered */
    RMPC_PAGE_HYPERVISOR,
    RMPC_PAGE_HV_FIXED,
    RMPC_PAGE_FIRMWARE,
    RMPC_PAGE_CONTEXT,
    RMPC_PAGE_METADATA,
    RMPC_PAGE_RECLAIM,
    RMPC_PAGE_PRE_GUEST,
    RMPC_PAGE_PRE_SWAP,
    RMPC_PAGE_GUEST_INVALID,
    RMPC_PAGE_GUEST_VALID,
    RMPC_PAGE_FIRMWARE_IOMMU,
    RMPC_PAGE_INVALID, /* fits no state */
    RMPC_PAGE_END
};

/* The state that an entry is in. */
enum rmpc_page_state rmpc_page_state_of(struct rmpc_rmp_entry entry);

enum rmpc_firmware_status {
    RMPC_FW_SUCCESS = 0x00,
    RMPC_FW_INVALID_PLATFORM_STATE = 0x01,
    RMPC_FW_INVALID_CONFIG = 0x03,
    RMPC_FW_INACTIVE = 0x08,
    RMPC_FW_INVALID_ADDRESS = 0x09,
    RMPC_FW_ASID_OWNED = 0x0c,
    RMPC_FW_INVALID_ASID = 0x0d,
    RMPC_FW_INVALID_GUEST = 0x10,
    RMPC_FW_ACTIVE = 0x12,
    RMPC_FW_INVALID_PARAM = 0x16,
    RMPC_FW_RESOURCE_LIMIT = 0x17,
    RMPC_FW_INVALID_PAGE_SIZE = 0x19,
    RMPC_FW_INVALID_PAGE_STATE = 0x1a,
    RMPC_FW_INVALID_MDATA_ENTRY = 0x1b,
    RMPC_FW_INVALID_PAGE_OWNER = 0x1c
};

/* A guest: the frame of its context page, and its ASID (0: not activated). */
struct rmpc_context {
    uint64_t pfn;
    uint64_t asid;
};

/* A metadata record: what SWAP_OUT keeps of a page. */
struct rmpc_record {
    uint64_t address;
    uint64_t context; /* frame of the guest's context page */
    uint64_t info;    /* RMPC_RECORD_* */
    uint64_t gpa;
    uint64_t hi; /* high quadword of the entry */
};
#define RMPC_RECORD_VALIDATED (UINT64_C(1) << 0)
#define RMPC_RECORD_VMSA (UINT64_C(1) << 1)
#define RMPC_RECORD_2M (UINT64_C(1) << 2)
#define RMPC_RECORD_METADATA (UINT64_C(1) << 3) /* of a metadata page */

#define RMPC_CONTEXTS 1024
#define RMPC_RECORDS 1024

/*
 * The firmware of one machine.  The caller sets rmp (NULL: SNP is not enabled), dram and events, and zeroes the rest.
 *   dram      what is DRAM and not on the host's list of reserved ranges, sorted, apart; whole pages or not
 *   ready     SNP_INIT was done
 *   contexts  sorted by pfn
 *   records   sorted by address
 */
struct rmpc_firmware {
    struct rmpc_rmp *rmp;
    const struct rmpc_extent *dram;
    size_t dram_count;
    const struct rmpc_events *events;
    bool ready;
    struct rmpc_context contexts[RMPC_CONTEXTS];
    size_t context_count;
    struct rmpc_record records[RMPC_RECORDS];
    size_t record_count;
};

/* Commands, by their numbers. */
enum rmpc_command {
    RMPC_SNP_INIT = 0x81,
    RMPC_SNP_SHUTDOWN = 0x86, /* SNP_SHUTDOWN_EX */
    RMPC_SNP_DECOMMISSION = 0x90,
    RMPC_SNP_ACTIVATE = 0x91,
    RMPC_SNP_GCTX_CREATE = 0x93,
    RMPC_SNP_LAUNCH_UPDATE = 0xa1,
    RMPC_SNP_PAGE_SWAP_OUT = 0xc0,
    RMPC_SNP_PAGE_SWAP_IN = 0xc1,
    RMPC_SNP_PAGE_MOVE = 0xc2,
    RMPC_SNP_MD_INIT = 0xc3,
    RMPC_SNP_PAGE_SET_STATE = 0xc6,
    RMPC_SNP_PAGE_RECLAIM = 0xc7,
    RMPC_SNP_PAGE_UNSMASH = 0xc8
};

/* The operands of a command; those that it does not use do not count. */
struct rmpc_operands {
    uint64_t page;  /* the page; MOVE, SWAP_*: source.  GCTX_CREATE, ACTIVATE, DECOMMISSION: the context page.
                       PAGE_RECLAIM: bit 0 is the size.  SNP_INIT: first frame of the IOMMU's buffers, as a number */
    uint64_t gctx;  /* the context page, for commands on other pages of a guest */
    uint64_t dst;   /* MOVE, SWAP_* */
    uint64_t mdata; /* SWAP_*: address of the metadata record, a multiple of 64 */
    uint64_t pages; /* SNP_INIT: frames of the IOMMU's buffers; SET_STATE: frames */
    uint32_t asid;  /* ACTIVATE */
    uint8_t type;   /* LAUNCH_UPDATE: 1 normal, 2 VMSA, 3 zero, 4 unmeasured, 5 secrets, 6 CPUID */
    uint8_t permissions[4]; /* LAUNCH_UPDATE: bytes of VMPL1 to VMPL3, at 1 to 3 */
    bool large;             /* the page is of 2 MiB */
    bool iommu;             /* SHUTDOWN: give the IOMMU's buffers back */
};

/* Do a command.  INVALID_PARAM where there is no such command, or INVALID_PLATFORM_STATE before SNP_INIT.  Its event has
 * page and gctx as they were given, used or not. */
enum rmpc_firmware_status rmpc_firmware_command(struct rmpc_firmware *firmware, enum rmpc_command command,
                                                const struct rmpc_operands *operands);

/* Put a context or a record back as a saved state has it, in rising order.  RMPC_ERR_ARGUMENT: a frame that cannot be,
 * or out of order; RMPC_ERR_FULL. */
enum rmpc_status rmpc_firmware_add_context(struct rmpc_firmware *firmware, struct rmpc_context context);
enum rmpc_status rmpc_firmware_add_record(struct rmpc_firmware *firmware, struct rmpc_record record);

RMPC_END_DECLS

#endif
