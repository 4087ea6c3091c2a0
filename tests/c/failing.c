/*
 * Makes one allocation of the Python extension fail: preloaded into a Python process by tests/test_fault_injection.py.
 *
 * Counted are calloc() through Python's PyMem_Calloc, which the extension keeps its arrays by, and realloc() and mmap()
 * that the extension itself calls.  All others go through.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Python's PyMemAllocatorEx */
struct allocator {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *old, size_t size);
    void (*free)(void *context, void *old);
};

enum { DOMAIN_MEM = 1 };

static struct allocator python;
static long left = -1; /* allocations until one fails; -1: none will */
static long failures;
static long maps; /* ranges that are mapped */

static int fails(void)
{
    if (left < 0 || left-- > 0)
        return 0;
    failures++;
    return 1;
}

/* Is that in the extension? */
static int is_extensions(const void *caller)
{
    Dl_info info;

    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "/_native.");
}

static void *failing_calloc(void *context, size_t count, size_t size)
{
    (void)context;
    return fails() ? NULL : python.calloc(python.context, count, size);
}

/* From now on allocation number `number` fails. */
void failing_arm(long number)
{
    void (*get)(int domain, struct allocator *allocator);
    void (*set)(int domain, struct allocator *allocator);

    *(void **)&get = dlsym(RTLD_DEFAULT, "PyMem_GetAllocator");
    *(void **)&set = dlsym(RTLD_DEFAULT, "PyMem_SetAllocator");
    if (!python.calloc) {
        struct allocator ours;

        get(DOMAIN_MEM, &python);
        ours = python;
        ours.calloc = failing_calloc;
        set(DOMAIN_MEM, &ours);
    }
    failures = 0;
    left = number;
}

/* No more of it; has one failed? */
long failing_done(void)
{
    left = -1;
    return failures;
}

/* Ranges that the extension has mapped. */
long failing_maps(void)
{
    return maps;
}

void *realloc(void *old, size_t size)
{
    static void *(*real)(void *old, size_t size);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "realloc");
    if (is_extensions(__builtin_return_address(0)) && fails())
        return NULL;
    return real(old, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    static void *(*real)(void *address, size_t size, int protection, int flags, int file, off_t offset);
    const int ours = is_extensions(__builtin_return_address(0));
    void *found;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "mmap");
    if (ours && fails())
        return MAP_FAILED;
    found = real(address, size, protection, flags, file, offset);
    maps += ours && found != MAP_FAILED;
    return found;
}

int munmap(void *address, size_t size)
{
    static int (*real)(void *address, size_t size);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "munmap");
    maps -= is_extensions(__builtin_return_address(0));
    return real(address, size);
}
