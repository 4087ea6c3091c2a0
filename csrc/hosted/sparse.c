/* Sparse host memory by mmap: reserved without backing, filled page by page as it is touched. */
#define _DEFAULT_SOURCE
#include "rmpcore/sparse.h"

#include <sys/mman.h>

enum rmpc_status rmpc_sparse_map(struct rmpc_range *range, bool dense)
{
    void *host = mmap(NULL, (size_t)range->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);

    range->host = NULL;
    if (host == MAP_FAILED)
        return RMPC_ERR_NOMEM;
#if defined(MADV_HUGEPAGE) && defined(MADV_NOHUGEPAGE)
    /* advice only: failure costs time or memory, nothing else */
    (void)madvise(host, (size_t)range->size, dense ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
    (void)dense;
#endif
    range->host = host;
    return RMPC_OK;
}

void rmpc_sparse_unmap(struct rmpc_range *range)
{
    if (range->host)
        munmap(range->host, (size_t)range->size);
    range->host = NULL;
}
