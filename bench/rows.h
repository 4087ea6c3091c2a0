/*
 * The rows of the benchmark: each a path of the core, and beside it its limit, the least that memory would ask for the
 * same bytes.  For bench/main.c, which times them without any Python, and bench/test_rows.py.
 */
#ifndef RMPCORE_BENCH_ROWS_H
#define RMPCORE_BENCH_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bench; /* a machine to measure on */

struct bench_row {
    const char *name;
    const char *group;
    const char *limit; /* what the limit does */
    double most;       /* the ratio that is not to be exceeded; 0: only reported */
    uint64_t gib;      /* memory of the machine */
    bool rmp;          /* it has an RMP */
    int argument;      /* what the row's functions say */
    void (*prepare)(struct bench *b);
    void (*run)(struct bench *b);
    void (*bare)(struct bench *b);
};

size_t bench_row_count(void);
const struct bench_row *bench_row(size_t i);

/* The row's machine, all of its memory touched; NULL: not enough of it.  dense: the RMP in huge pages, if the system has
 * them; otherwise in small ones, as Python's machines have it. */
struct bench *bench_open(const struct bench_row *row, bool dense);
void bench_close(struct bench *b);

/* Before the path, and before its limit: so both find the caches alike. */
void bench_prepare(struct bench *b);
/* One round of the path; pieces of work that were done, 0: not what was to be done. */
uint64_t bench_run(struct bench *b);
/* One round of its limit. */
void bench_bare(struct bench *b);

/* The ops in order by rmpc_machine_run(), on a row's machine. */
void bench_apply(struct bench *b, const void *ops, size_t count, void *results);

#endif
