/*
 * The kernel's SNP host layer, Linux 6.9 and later (rules: docs/host.md, section 1).
 *
 * Functions return what the kernel's return: 0, a negative errno, or (psmash) a positive instruction code.
 */
#ifndef RMPCORE_SNP_HOST_H
#define RMPCORE_SNP_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dmap.h"
#include "firmware.h"
#include "rmp_check.h"
#include "rmp_insn.h"

#define RMPC_EIO 5
#define RMPC_ENODEV 19
#define RMPC_EINVAL 22
#define RMPC_SECTION_SHIFT 27 /* "pfn valid" holds for whole 128 MiB sections that have memory */

/* What rmpupdate() returns, an errno being negative, when the real FAIL_OVERLAP would make it repeat the
 * instruction for ever. */
#define RMPC_HANGS 1

/*
 *   memory        RAM at boot, as rmpc_extents_check() wants it
 *   rmp           NULL: SNP is not enabled
 *   cpu           who executes the kernel: its mode has to be the host's, at CPL 0
 *   leaked_pages  pages given up by snp_leak_pages(); may be set
 *   retries       RMPUPDATEs that were repeated because of an injected FAIL_OVERLAP; may be set
 */
struct rmpc_host {
    struct rmpc_dmap *dmap;
    struct rmpc_rmp *rmp;
    struct rmpc_cpu *cpu;
    struct rmpc_firmware *firmware;
    const struct rmpc_extent *memory;
    size_t memory_count;
    uint64_t leaked_pages;
    uint64_t retries;
    const struct rmpc_events *events;
};

/* pfn_valid() */
bool rmpc_pfn_valid(const struct rmpc_host *host, uint64_t pfn);

/* Split the direct map as far as an RMP update at this level (1: 4K, 2: 2M) needs it. */
int rmpc_adjust_direct_map(struct rmpc_host *host, uint64_t pfn, int level);

/* Adjust the direct map, then RMPUPDATE, repeated while FAIL_OVERLAP was injected.  0, -ENODEV, -EFAULT, or
 * RMPC_HANGS. */
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
 * returned, or RMPC_HANGS (pages stay as they are then). */
int rmpc_rmp_mark_pages_firmware(struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* Take pages back from the firmware, one by one; from the first failure on they are leaked.  0, -EIO (the firmware's
 * refusal), what rmp_make_shared returned, or RMPC_HANGS.
 * Frames of both have to be valid: see rmpc_pages_valid(). */
int rmpc_snp_reclaim_pages(struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* Are all these frames valid, and not more than 2^20? */
bool rmpc_pages_valid(const struct rmpc_host *host, uint64_t pfn, uint64_t pages);

/* An access of the kernel through the direct map: the walk, and for a write the RMP's check at the size of the leaf.
 * Accessed and dirty bits are left alone.
 *   level  of the leaf; 0: nothing there */
struct rmpc_outcome rmpc_host_access(const struct rmpc_host *host, uint64_t pfn, bool write, int *level);

/* The same for many frames, several at a time. */
void rmpc_host_access_all(const struct rmpc_host *host, const uint64_t *pfns, size_t count, bool write,
                          struct rmpc_outcome *outcomes);

/* The 2 MiB blocks at the ends of the RMP that the kernel reserves (docs/host.md, section 1): those that a table does
 * not fill, if some byte of them is usable.  Sorted; how many there are, of which the first room are written.
 *   usable  sorted extents; whole pages or not */
size_t rmpc_rmp_end_blocks(const struct rmpc_rmp *rmp, const struct rmpc_extent *usable, size_t count,
                           struct rmpc_extent *blocks, size_t room);

#endif
