/*
 * Status codes: what went wrong with a call of this library.
 *
 * They report misuse and impossible input only.  What an instruction answers in EAX, what a kernel
 * function returns and which exception is raised are results, and travel as values.
 */
#ifndef RMPCORE_STATUS_H
#define RMPCORE_STATUS_H

#include "api.h"

RMPC_BEGIN_DECLS

enum rmpc_status {
    RMPC_OK = 0,
    RMPC_ERR_ARGUMENT = 1,   /* an argument outside what the function takes */
    RMPC_ERR_OP = 2,         /* no such op, or not in this kernel */
    RMPC_ERR_RANGE = 3,      /* ranges that overlap, are unsorted, wrap, or are not backed by memory */
    RMPC_ERR_NOMEM = 4,      /* the allocator has no page */
    RMPC_ERR_FULL = 5,       /* a list or queue of fixed size is full */
    RMPC_ERR_STATE = 6,      /* table entries that contradict each other */
    RMPC_ERR_KERNEL = 7,     /* no rules for this kernel version */
    RMPC_ERR_RMP_NONE = 8,   /* RMP probing: the BIOS has reserved no memory for the table */
    RMPC_ERR_RMP_ORDER = 9,  /* RMP probing: base above end */
    RMPC_ERR_RMP_SMALL = 10, /* RMP probing: does not cover all memory and itself */
    RMPC_ERR_RMP_CONFIG = 11, /* segmented RMP: RMP_CFG, RMP_BASE or the segment table is none that hardware takes */
    RMPC_ERR_RMP_SEGMENT = 12, /* segmented RMP, probing: size of a segment outside CPUID's bounds */
    RMPC_ERR_RMP_COVER = 13,   /* segmented RMP, probing: does not cover all memory */
    RMPC_STATUS_END
};

/* One line of English for a status; never NULL. */
const char *rmpc_status_text(enum rmpc_status status);

RMPC_END_DECLS

#endif
