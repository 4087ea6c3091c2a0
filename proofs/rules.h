/* What all proofs share: values that may be anything, and three words for what is assumed, claimed and reached. */
#ifndef RMPCORE_PROOFS_RULES_H
#define RMPCORE_PROOFS_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CBMC takes a function without a body, named so, for any value of its type. */
uint64_t nondet_u64(void);
unsigned nondet_unsigned(void);
int nondet_int(void);
bool nondet_bool(void);

#define ASSUME(condition) __CPROVER_assume(condition)
#define CLAIM(condition, what) __CPROVER_assert(condition, what)
/* Has to be reachable under all that is assumed: run takes a proof for empty unless this "fails".  (BROKEN: the core is
 * broken on purpose, and only claims may fail.) */
#ifdef BROKEN
#define REACHED(what) (void)0
#else
#define REACHED(what) __CPROVER_assert(0, "reached: " what)
#endif

/* No memory-encryption bit, or one of the bits lowest to 51. */
static inline uint64_t any_c_bit(unsigned lowest)
{
    unsigned bit = nondet_unsigned();

    ASSUME(bit >= lowest && bit <= 51);
    return nondet_bool() ? UINT64_C(1) << bit : 0;
}

#endif
