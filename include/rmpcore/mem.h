/*
 * Simulated physical memory: real bytes in ranges that the caller owns, and where new pages come from.
 *
 * Page tables and RMP entries live in this memory, so an embedder hands over the RAM of its machine and
 * finds there what hardware and kernel would have written.  All addresses and sizes are in bytes.
 */
#ifndef RMPCORE_MEM_H
#define RMPCORE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api.h"
#include "status.h"

RMPC_BEGIN_DECLS

#define RMPC_PAGE_SHIFT 12
#define RMPC_PAGE_SIZE UINT64_C(4096)
#define RMPC_REGION_FRAMES UINT64_C(512)          /* 4 KiB frames in 2 MiB */
#define RMPC_PHYSICAL_LIMIT (UINT64_C(1) << 52)   /* no frame at or above: entries hold bits 51:12 */
#define RMPC_NO_PAGE UINT64_MAX                   /* an allocator's "none left" */

/* Physical addresses [base, base + size), without host memory. */
struct rmpc_extent {
    uint64_t base;
    uint64_t size;
};

/* A range of simulated memory.  base, size and host are multiples of the page size; the caller keeps
 * host alive and reads or writes it as it likes between calls. */
struct rmpc_range {
    uint64_t base;
    uint64_t size;
    void *host;
};

/*
 * The memory of one machine.
 *   ranges      sorted by base, not overlapping
 *   alloc       gives the physical address of a free page inside one of the ranges, with any contents,
 *               or RMPC_NO_PAGE
 *   free        takes a page back that alloc gave, or that was in use before; may be NULL
 *   fail_skip,
 *   fail_count  for tests: after fail_skip more allocations, fail_count allocations find no page
 */
struct rmpc_mem {
    const struct rmpc_range *ranges;
    size_t count;
    uint64_t (*alloc)(void *user);
    void (*free)(void *user, uint64_t pa);
    void *user;
    uint64_t fail_skip;
    uint64_t fail_count;
};

/* RMPC_ERR_RANGE unless the ranges are as struct rmpc_mem wants them. */
enum rmpc_status rmpc_mem_check(const struct rmpc_mem *mem);

/* Host address of [pa, pa + size); NULL unless one range holds all of it. */
void *rmpc_mem_at(const struct rmpc_mem *mem, uint64_t pa, uint64_t size);

/* A page for a table, or RMPC_NO_PAGE: the allocator's answer, checked to be a page of the memory. */
uint64_t rmpc_mem_alloc(struct rmpc_mem *mem);

/* Give a page back. */
void rmpc_mem_free(struct rmpc_mem *mem, uint64_t pa);

/* Copy bytes out of, or into, simulated memory.  RMPC_ERR_RANGE, and nothing copied, when not backed. */
enum rmpc_status rmpc_mem_read(const struct rmpc_mem *mem, uint64_t pa, void *out, size_t size);
enum rmpc_status rmpc_mem_write(const struct rmpc_mem *mem, uint64_t pa, const void *data, size_t size);

/* RMPC_ERR_RANGE unless sorted, not overlapping, whole pages, and below RMPC_PHYSICAL_LIMIT. */
enum rmpc_status rmpc_extents_check(const struct rmpc_extent *extents, size_t count);

/* The extent that contains address, or the first one above it; count if there is none. */
size_t rmpc_extents_find(const struct rmpc_extent *extents, size_t count, uint64_t address);

/*
 * A page allocator for callers that have none: gives out the highest free frame of memory.  Free is what is in
 * memory, touches no reserved extent, is not listed as busy, and has not been given out.  A page that is given back
 * and was never allocatable (a table among what is reserved) is not given out again.
 *   mem                where pages given back keep their links, in their own bytes
 *   memory, reserved   sorted extents as rmpc_extents_check() wants them (reserved may be unaligned)
 *   busy               sorted frame numbers already in use
 * rmpc_pool_init() sets the rest.
 */
struct rmpc_pool {
    const struct rmpc_mem *mem;
    const struct rmpc_extent *memory;
    size_t memory_count;
    const struct rmpc_extent *reserved;
    size_t reserved_count;
    const uint64_t *busy;
    size_t busy_count;
    uint64_t next;  /* one past the next frame to look at */
    uint64_t freed; /* the highest page given back, RMPC_NO_PAGE: none; each links to lower ones */
};

void rmpc_pool_init(struct rmpc_pool *pool);

/* alloc and free callbacks for struct rmpc_mem; user is the pool. */
uint64_t rmpc_pool_alloc(void *user);
void rmpc_pool_free(void *user, uint64_t pa);

RMPC_END_DECLS

#endif
