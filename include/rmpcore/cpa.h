/*
 * Changing attributes of mapped pages, and the large-page split (rules: docs/direct-map.md, sections 4 to 7).
 *
 * Functions return what the kernel's return: 0 or a negative errno.  Frames are given by number; a range
 * that reaches beyond rmpc_dmap_limit() is not modelled and gives -EFAULT untouched.
 */
#ifndef RMPCORE_CPA_H
#define RMPCORE_CPA_H

#include <stdbool.h>
#include <stdint.h>

#include "dmap.h"

#define RMPC_EFAULT 14
#define RMPC_ENOMEM 12
#define RMPC_FLUSH_CEILING 33 /* more pages than this are flushed all at once */

/* Map at 4 KiB: splits every large page in the range. */
int rmpc_set_memory_4k(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages);

/* Unmap, and map again, one page or several, without the final flush. */
int rmpc_set_direct_map_invalid_noflush(struct rmpc_dmap *dmap, uint64_t pfn);
int rmpc_set_direct_map_default_noflush(struct rmpc_dmap *dmap, uint64_t pfn);
int rmpc_set_direct_map_valid_noflush(struct rmpc_dmap *dmap, uint64_t pfn, uint64_t pages, bool valid);

#endif
