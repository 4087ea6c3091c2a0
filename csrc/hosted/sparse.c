/* Sparse host memory by mmap: reserved without backing, filled page by page as it is touched. */
#define _DEFAULT_SOURCE
#include "rmpcore/sparse.h"

#include <sys/mman.h>

enum rmpc_status rmpc_sparse_map(struct rmpc_range *range)
{
    void *host = mmap(NULL, (size_t)range->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);

    range->host = NULL;
    if (host == MAP_FAILED)
        return RMPC_ERR_NOMEM;
#ifdef MADV_NOHUGEPAGE
    /* a huge page for each touched entry would make a scattered table 512 times as dear; failure is harmless */
    (void)madvise(host, (size_t)range->size, MADV_NOHUGEPAGE);
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
