/*
 * The kernel's SNP host layer, Linux 6.9 and later, and what else was proposed for it (rules: docs/host.md, sections 1
 * and 6).
 *
 * Functions return what the kernel's return: 0, a negative errno, or a positive instruction code (psmash; under some
 * policies all that update the RMP).
 */
#ifndef RMPCORE_SNP_HOST_H
#define RMPCORE_SNP_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "dmap.h"
#include "firmware.h"
#include "rmp_check.h"
#include "rmp_insn.h"

RMPC_BEGIN_DECLS

#define RMPC_EIO 5
#define RMPC_ENODEV 19
#define RMPC_EINVAL 22
#define RMPC_SECTION_SHIFT 27 /* "pfn valid" holds for whole 128 MiB sections that have memory */

/* What rmpupdate() returns, plus the instruction's code (which is below this), when it would repeat the instruction for
 * ever. */
#define RMPC_HANGS 0x100

/* What the host does about its direct map when the RMP changes (section 6). */
enum rmpc_policy {
    RMPC_POLICY_UPSTREAM, /* Linux 6.9 and later: split for a 4K entry */
    RMPC_POLICY_NONE,
    RMPC_POLICY_RFC_V4,      /* split at every update */
    RMPC_POLICY_UNMAP,       /* v5: private pages are not in the direct map; no flush */
    RMPC_POLICY_UNMAP_FLUSH, /* v7 */
    RMPC_POLICY_KMAP,        /* shared pages are reached through windows */
    RMPC_POLICY_FAULT_SPLIT, /* v2: split when a write faults */
    RMPC_POLICY_MAP_4K,      /* give the direct map large_level 1 when it is booted */
    RMPC_POLICY_SPLIT_RESTORE, /* as upstream; the large page comes back */
    RMPC_POLICY_END
};

/* The host's own accesses (section 6.5). */
struct rmpc_host_counters {
    uint64_t accesses; /* ops, tried once or more: rmpc_machine_apply() counts them */
    uint64_t faults_owner; /* of accesses to a page that is not the host's */
    uint64_t faults_neighbour;
    uint64_t repairs; /* faults after which the access was to be tried again */
    uint64_t forced_shared;
    uint64_t windows;
};

/*
 *   memory        RAM at boot, as rmpc_extents_check() wants it
 *   rmp           NULL: SNP is not enabled
 *   cpu           who executes the kernel: its mode has to be the host's, at CPL 0
 *   policy        may be changed at any time; one that does not exist: RMP updates are -EINVAL
 *   leaked_pages  pages given up by snp_leak_pages(); may be set
 *   retries       RMPUPDATEs that were repeated because of an injected code; may be set
 *   counters      may be set
 */
struct rmpc_host {
    struct rmpc_dmap *dmap;
    struct rmpc_rmp *rmp;
    struct rmpc_cpu *cpu;
    struct rmpc_firmware *firmware;
    const struct rmpc_extent *memory;
    size_t memory_count;
    enum rmpc_policy policy;
    uint64_t leaked_pages;
    uint64_t retries;
    struct rmpc_host_counters counters;
    const struct rmpc_events *events;
};

/* The policy's name, as "rfc-v4"; NULL: no such policy. */
const char *rmpc_policy_name(unsigned policy);

/* pfn_valid() */
bool rmpc_pfn_valid(const struct rmpc_host *host, uint64_t pfn);

/* Split the direct map as far as an RMP update at this level (1: 4K, 2: 2M) needs it. */
int rmpc_adjust_direct_map(struct rmpc_host *host, uint64_t pfn, int level);

/* What the policy wants done first, then RMPUPDATE, repeated while a code came up that the policy repeats and that passes,
 * then what the policy wants done after it.  0, a negative errno, a positive code (rfc-v4, unmap, unmap-flush), or
 * RMPC_HANGS + code. */
int rmpc_host_rmpupdate(struct rmpc_host *host, uint64_t pfn, struct rmpc_rmp_state input);

/* Level 1 makes a 4K entry, every other level a 2M entry.  Returns as rmpc_host_rmpupdate(). */
int rmpc_rmp_make_private(struct rmpc_host *host, uint64_t pfn, uint64_t gpa, int level, uint32_t asid,
                          bool immutable);
int rmpc_rmp_make_firmware(struct rmpc_host *host, uint64_t pfn, int level);
int rmpc_rmp_make_shared(struct rmpc_host *host, uint64_t pfn, int level);

/* 0, a positive code of PSMASH, -ENODEV or -EINVAL. */
int rmpc_host_psmash(struct rmpc_host *host, uint64_t pfn);

/* The frame's own assigned bit, and the level of its 2 MiB-aligned entry.  From 6.14, on parts that have it, by RMPREAD,
 * whose positive code is returned.  -ENODEV, -EFAULT, a code: outputs untouched. */
int rmpc_snp_lookup_rmpentry(struct rmpc_host *host, uint64_t pfn, bool *assigned, int *level);

/* What the kernel prints about a frame's entry, as events. */
void rmpc_dump_rmpentry(struct rmpc_host *host, uint64_t pfn);

/* Give up on pages.  RMPC_ERR_ARGUMENT: some frame is not valid, or more than 2^20 pages. */
enum rmpc_status rmpc_snp_leak_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* Give pages to the firmware, one by one; on a failure those that are done are taken back.  0, what rmp_make_private
 * returned, or RMPC_HANGS + code (pages stay as they are then). */
int rmpc_rmp_mark_pages_firmware(struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* Take pages back from the firmware, one by one; from the first failure on they are leaked.  0, -EIO (the firmware's
 * refusal), what rmp_make_shared returned, or RMPC_HANGS + code.
 * Frames of both have to be valid: see rmpc_pages_valid(). */
int rmpc_snp_reclaim_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* Are all these frames valid, and not more than 2^20? */
bool rmpc_pages_valid(const struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* How the host accesses a page. */
enum rmpc_host_access_kind {
    RMPC_HOST_READ,
    RMPC_HOST_WRITE,
    RMPC_KVM_READ, /* KVM, a page that a guest shares with it: through a window under the policy kmap */
    RMPC_KVM_WRITE
};

/* One try of an access: the walk of the direct map, and for a write the RMP's check at the size of the leaf; or a window.
 * A fault is counted by its victim.  Accessed and dirty bits are left alone.
 *   level  of the leaf; 0: nothing there */
struct rmpc_outcome rmpc_host_access(struct rmpc_host *host, uint64_t pfn, enum rmpc_host_access_kind kind, int *level);

/* The same for many frames, several at a time. */
void rmpc_host_access_all(struct rmpc_host *host, const uint64_t *pfns, size_t count, enum rmpc_host_access_kind kind,
                          struct rmpc_outcome *outcomes);

/* What the policy does about a fault of rmpc_host_access() on this leaf.  true: the access is to be tried again. */
bool rmpc_host_handle_fault(struct rmpc_host *host, uint64_t pfn, struct rmpc_outcome fault, int level);

/* The 2 MiB blocks at the ends of the RMP that the kernel reserves (docs/host.md, section 1): those that a table does
 * not fill, if some byte of them is usable.  Sorted; how many there are, of which the first room are written.  With less
 * room than there are, a block that two tables share and that is not written is counted twice.
 *   usable  sorted extents; whole pages or not */
size_t rmpc_rmp_end_blocks(const struct rmpc_rmp *rmp, const struct rmpc_extent *usable, size_t count,
                           struct rmpc_extent *blocks, size_t room);

RMPC_END_DECLS

#endif
