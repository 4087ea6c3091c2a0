/*
 * Kernel profiles: the one place that turns a Linux version into switches (rules: docs/direct-map.md,
 * section 10).
 */
#ifndef RMPCORE_KERNEL_H
#define RMPCORE_KERNEL_H

#include <stdbool.h>

#include "api.h"
#include "status.h"

RMPC_BEGIN_DECLS

struct rmpc_kernel {
    int major;
    int minor;
    bool rox;              /* 6.2: set_memory_rox() exists */
    bool primary_always;   /* 6.2: changes of NX alone and set_direct_map_*() are primary runs too */
    bool clear_d_with_rw;  /* 6.6: D leaves together with RW */
    bool snp_host;         /* 6.9: the functions of snp_host.h exist */
    bool rmp_end_blocks;   /* 6.10: the 2 MiB blocks at the ends of the RMP become reserved in e820 */
    bool rmp_end_reserved; /* 6.12: ... and are not allocated from any more */
    bool set_valid;        /* 6.13: set_direct_map_valid_noflush() exists */
    bool segmented_rmp;    /* 6.14: the segmented RMP and RMPREAD are known */
    bool mark_4k;          /* 6.15: set_memory_4k() marks its pages KERNEL_4K */
    bool collapse;         /* 6.15: set_memory_rox() puts large pages back together */
};

/* RMPC_ERR_KERNEL: older than 6.1, the first version whose rules are known. */
enum rmpc_status rmpc_kernel_init(struct rmpc_kernel *kernel, int major, int minor);

RMPC_END_DECLS

#endif
