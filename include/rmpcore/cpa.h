/*
 * Changing attributes of mapped pages, and the large-page split (rules: docs/direct-map.md, sections 4 to 7).
 *
 * Functions return what the kernel's return: 0 or a negative errno.  Addresses lie in the direct map (frames below
 * rmpc_dmap_limit()) or in the high mapping of the image; a range of anything else is not modelled and gives -EFAULT
 * untouched.
 */
#ifndef RMPCORE_CPA_H
#define RMPCORE_CPA_H

#include <stdbool.h>
#include <stdint.h>

#include "api.h"
#include "dmap.h"

RMPC_BEGIN_DECLS

#define RMPC_EFAULT 14
#define RMPC_ENOMEM 12
#define RMPC_FLUSH_CEILING 33 /* more pages than this are flushed all at once */

/* Which pages a call is for: count consecutive ones from va, or, when addresses is given, those count addresses one
 * by one (the kernel's array flavours, which look at one page at a time). */
struct rmpc_pages {
    uint64_t va;
    uint64_t count;
    const uint64_t *addresses;
};

/* Consecutive frames of the direct map. */
static inline struct rmpc_pages rmpc_dmap_pages(const struct rmpc_dmap *dmap, uint64_t pfn, uint64_t count)
{
    struct rmpc_pages pages = {rmpc_dmap_address(dmap, pfn), count, NULL};
    return pages;
}

/* The kernel's calls that change attributes of pages (section 7). */
enum rmpc_set_memory {
    RMPC_SET_MEMORY_4K,
    RMPC_SET_MEMORY_RO,
    RMPC_SET_MEMORY_RW,
    RMPC_SET_MEMORY_ROX,
    RMPC_SET_MEMORY_NX,
    RMPC_SET_MEMORY_X,
    RMPC_SET_MEMORY_NP,
    RMPC_SET_MEMORY_P,
    RMPC_SET_MEMORY_NP_NOALIAS,
    RMPC_SET_MEMORY_GLOBAL,
    RMPC_SET_MEMORY_NONGLOBAL,
    RMPC_SET_MEMORY_UC,
    RMPC_SET_MEMORY_WC,
    RMPC_SET_MEMORY_WB,
    RMPC_SET_MEMORY_ENCRYPTED,
    RMPC_SET_MEMORY_DECRYPTED,
    RMPC_SET_MEMORY_END
};

/* Do the call.  -EFAULT also for no such call. */
int rmpc_set_memory(struct rmpc_dmap *dmap, enum rmpc_set_memory call, struct rmpc_pages pages);

/* Set, and clear, these entry bits (small form; none of the address but the encryption bit: -EFAULT untouched). */
int rmpc_change_page_attr(struct rmpc_dmap *dmap, struct rmpc_pages pages, uint64_t set, uint64_t clear);

/* Unmap, and map again, one page or several, without the final flush. */
int rmpc_set_direct_map_invalid_noflush(struct rmpc_dmap *dmap, uint64_t pfn);
int rmpc_set_direct_map_default_noflush(struct rmpc_dmap *dmap, uint64_t pfn);
int rmpc_set_direct_map_valid_noflush(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages, bool valid);

/* Put large leaves back around a frame of the direct map (docs/host.md, section 6.4): in the place of tables that splits
 * have made and whose entries fit together, of 2 MiB and then of 1 GiB, where may_restore allows the frames that the
 * leaf would map. */
void rmpc_dmap_restore(struct rmpc_dmap *dmap, uint64_t pfn,
                       bool (*may_restore)(const void *user, uint64_t pfn, uint64_t pages), const void *user);

RMPC_END_DECLS

#endif
