/*
 * What every public header has around its declarations, and the version of the interface.
 *
 * A program is compiled against headers of one version and runs with a library of another one at times:
 * rmpc_abi_matches() at its start tells whether the two go together.
 */
#ifndef RMPCORE_API_H
#define RMPCORE_API_H

#include <stdbool.h>

/* Which version this is; the build files read it here, and a test holds the Python package's number against it. */
#define RMPC_VERSION_MAJOR 0
#define RMPC_VERSION_MINOR 1
#define RMPC_VERSION_PATCH 0

/* The shared library's soname ends in this number.  It goes up when a structure, a constant or a function that was
 * there before changes. */
#define RMPC_ABI 1

/* C names for C++; and visible in a shared library, which is built with RMPC_SHARED and hides everything else. */
#ifdef __cplusplus
#define RMPC_EXTERN_C_BEGIN extern "C" {
#define RMPC_EXTERN_C_END }
#else
#define RMPC_EXTERN_C_BEGIN
#define RMPC_EXTERN_C_END
#endif
#ifdef RMPC_SHARED
#define RMPC_BEGIN_DECLS RMPC_EXTERN_C_BEGIN _Pragma("GCC visibility push(default)")
#define RMPC_END_DECLS _Pragma("GCC visibility pop") RMPC_EXTERN_C_END
#else
#define RMPC_BEGIN_DECLS RMPC_EXTERN_C_BEGIN
#define RMPC_END_DECLS RMPC_EXTERN_C_END
#endif

RMPC_BEGIN_DECLS

/* RMPC_ABI, and the version as "0.1.0", of the library that the program runs with. */
int rmpc_abi(void);
const char *rmpc_version(void);

/* Do these headers and that library go together? */
static inline bool rmpc_abi_matches(void)
{
    return rmpc_abi() == RMPC_ABI;
}

RMPC_END_DECLS

#endif
