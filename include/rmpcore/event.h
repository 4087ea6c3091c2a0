/*
 * Events: what a simulator may want to know beside results.
 *
 * An optional callback gets one fixed-size record for each TLB flush, page-table page, split,
 * instruction and kernel message.  Records have the same layout as EVENT_DTYPE in Python.
 */
#ifndef RMPCORE_EVENT_H
#define RMPCORE_EVENT_H

#include <assert.h>
#include <stdint.h>

#include "api.h"

RMPC_BEGIN_DECLS

enum rmpc_event_kind {
    RMPC_EVENT_RMPUPDATE = 1,        /* code: EAX; a: RAX; b, c: low and high quadword of the input */
    RMPC_EVENT_PSMASH = 2,           /* code: EAX; a: RAX */
    RMPC_EVENT_RMPREAD = 3,          /* code: EAX; a: RAX; b, c: output (0 unless code is 0) */
    RMPC_EVENT_FLUSH_ALL = 4,        /* every TLB entry on every CPU */
    RMPC_EVENT_FLUSH_PAGES = 5,      /* page by page on every CPU; a: first virtual address; b: pages */
    RMPC_EVENT_TABLE_ALLOC = 6,      /* level: of the entries it will hold; a: physical address */
    RMPC_EVENT_ALLOC_FAIL = 7,       /* level: of the entries it would have held */
    RMPC_EVENT_SPLIT = 8,            /* level, a: virtual address, b: raw value of the leaf; c: new table */
    RMPC_EVENT_RMPUPDATE_FAILED = 9, /* level, a: frame, as passed to rmpupdate(); code: EAX */
    RMPC_EVENT_DUMP_ENTRY = 10,      /* a: frame; b, c: low and high quadword of its entry */
    RMPC_EVENT_DUMP_REGION = 11,     /* a: frame asked for; b, c: first frame, one past the last */
    RMPC_EVENT_DUMP_ERROR = 12,      /* a: frame; code: negative errno */
    RMPC_EVENT_LEAK = 13,            /* a: first frame; b: pages */
    RMPC_EVENT_FLUSH_CACHE = 14,     /* cache lines on every CPU; a: first virtual address; b: pages */
    RMPC_EVENT_FLUSH_CACHE_ALL = 15, /* all caches of every CPU */
    RMPC_EVENT_W_AND_X = 16,         /* level, a: virtual address of the entry's first byte; b, c: flags before, after */
    RMPC_EVENT_COLLAPSE = 17,        /* level, a: virtual address, b: raw value of the new leaf; c: the table replaced */
    RMPC_EVENT_TABLE_FREE = 18,      /* a: physical address of a page-table page that is given back */
    RMPC_EVENT_PVALIDATE = 19,       /* code: EAX; level: CF; a: RAX; b, c: RCX and RDX */
    RMPC_EVENT_RMPADJUST = 20,       /* code: EAX; a: RAX; b, c: RCX and RDX */
    RMPC_EVENT_RMPQUERY = 21,        /* code: EAX; a: RAX; b, c: RCX and RDX afterwards (0 unless code is 0) */
    RMPC_EVENT_FIRMWARE = 22,        /* code: status; a: number of the command; b, c: its addresses */
    RMPC_EVENT_FAULT = 23,           /* a refused access; level: kind of the result (enum rmpc_result_kind); code: its
                                        ret; a: physical address; b: its value; c: enum rmpc_reason */
    RMPC_EVENT_END
};

struct rmpc_event {
    uint16_t kind;
    uint8_t level;
    uint8_t reserved;
    int32_t code;
    uint64_t a;
    uint64_t b;
    uint64_t c;
};
static_assert(sizeof(struct rmpc_event) == 32, "event records cross to other languages");

/* Where events go.  report may be NULL.  It must not call back into the object that reports. */
struct rmpc_events {
    void (*report)(void *user, const struct rmpc_event *event);
    void *user;
};

static inline void rmpc_report(const struct rmpc_events *events, enum rmpc_event_kind kind, int level, int32_t code,
                               uint64_t a, uint64_t b, uint64_t c)
{
    if (events && events->report) {
        struct rmpc_event event = {(uint16_t)kind, (uint8_t)level, 0, code, a, b, c};
        events->report(events->user, &event);
    }
}

RMPC_END_DECLS

#endif
