/*
 * What one writes first: RMP and direct map by the documents, without a thought of speed.  For bench/test_alternatives.py.
 *
 * As far as it goes it gives what the core gives: entries of a Milan, leaves of kernel 6.12.  It has no firmware, guests,
 * accesses, marks for pages in use, other threads or events, and takes no right away from a page.
 */
#ifndef RMPCORE_BENCH_NAIVE_H
#define RMPCORE_BENCH_NAIVE_H

#include <stdbool.h>
#include <stdint.h>

struct naive_entry {
    uint64_t lo;
    uint64_t hi;
};

struct naive_leaf {
    uint64_t *entry; /* NULL: nothing there */
    int level;
    bool rw, nx; /* of the levels above */
};

struct naive {
    uint64_t frames; /* of RAM and of the RMP, a multiple of 512 */
    struct naive_entry *rmp;
    uint64_t assigned[1024]; /* by ASID */
    uint64_t (*tables)[512]; /* pages for tables; a table's address is its place here times 4 KiB */
    uint64_t tables_used, tables_max;
    uint64_t count[4]; /* leaves by level */
};

/* All entries zero, no direct map yet.  NULL: not enough memory. */
struct naive *naive_open(uint64_t frames, uint64_t tables_max);
void naive_close(struct naive *n);

/* These answer as the instructions do, in EAX. */
int naive_rmpupdate(struct naive *n, uint64_t pa, uint64_t gpa, bool assigned, bool size, bool immutable, uint64_t asid);
int naive_psmash(struct naive *n, uint64_t pa);

/* A fresh direct map of leaves of this level; frames are a multiple of what one spans. */
void naive_boot(struct naive *n, int level);
struct naive_leaf naive_lookup(const struct naive *n, uint64_t pfn);
int naive_set_memory_4k(struct naive *n, uint64_t pfn, uint64_t pages);

/* The loops of the rows of the same names in bench/rows.c; pieces of work that were done. */
void naive_prepare_psmash(struct naive *n, uint64_t regions);
uint64_t naive_run_psmash(struct naive *n, uint64_t regions);
uint64_t naive_run_rmpupdate_4k(struct naive *n, const uint64_t *frames, uint64_t count);
void naive_prepare_2m_leaves(struct naive *n, uint64_t regions);
uint64_t naive_split_2m_leaves(struct naive *n, uint64_t regions);
uint64_t naive_run_lookup(const struct naive *n, const uint64_t *frames, uint64_t count, uint64_t *sum);

#endif
