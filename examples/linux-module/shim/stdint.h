/* For the core's headers inside the kernel, which is built without the compiler's own. */
#ifndef RMPCORE_SHIM_STDINT_H
#define RMPCORE_SHIM_STDINT_H

#include <linux/types.h>

#define UINT64_C(number) number##ULL
#ifndef UINT32_MAX
#define UINT32_MAX 0xffffffffU
#endif
#ifndef UINT64_MAX
#define UINT64_MAX UINT64_C(0xffffffffffffffff)
#endif

#endif
