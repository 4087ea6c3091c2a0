/*
 * Sparse memory for hosted programs: an address range of any size that costs only the pages it has touched.
 *
 * Apart from the core, which needs no operating system.  Available where mmap() is.
 */
#ifndef RMPCORE_SPARSE_H
#define RMPCORE_SPARSE_H

#include "api.h"
#include "mem.h"

RMPC_BEGIN_DECLS

/* Reserve zeroed host memory for range->size bytes (a multiple of the page size) and set range->host.
 *   dense  it will be touched in long runs (RAM whose page tables lie side by side), so that huge pages pay;
 *          otherwise here and there (an RMP), and each touch should cost one small page
 * RMPC_ERR_NOMEM: the system gives no address space of that size; range->host is NULL then. */
enum rmpc_status rmpc_sparse_map(struct rmpc_range *range, bool dense);

/* Give it back.  A range whose host is NULL is left alone. */
void rmpc_sparse_unmap(struct rmpc_range *range);

RMPC_END_DECLS

#endif
