/* Linux version to switches: direct-map section 10. */
#include "rmpcore/kernel.h"

static bool from(int major, int minor, int first_major, int first_minor)
{
    return major > first_major || (major == first_major && minor >= first_minor);
}

enum rmpc_status rmpc_kernel_init(struct rmpc_kernel *kernel, int major, int minor)
{
    if (minor < 0 || !from(major, minor, 6, 1))
        return RMPC_ERR_KERNEL;
    *kernel = (struct rmpc_kernel){
        .major = major,
        .minor = minor,
        .rox = from(major, minor, 6, 2),
        .primary_always = from(major, minor, 6, 2),
        .clear_d_with_rw = from(major, minor, 6, 6),
        .snp_host = from(major, minor, 6, 9),
        .rmp_end_blocks = from(major, minor, 6, 10),
        .rmp_end_reserved = from(major, minor, 6, 12),
        .set_valid = from(major, minor, 6, 13),
        .segmented_rmp = from(major, minor, 6, 14),
        .mark_4k = from(major, minor, 6, 15),
        .collapse = from(major, minor, 6, 15),
    };
    return RMPC_OK;
}
