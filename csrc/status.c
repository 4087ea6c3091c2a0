/* The text of each status code. */
#include "rmpcore/status.h"

/* Arrays: pointers would need relocation, and make the table writable data. */
static const char texts[RMPC_STATUS_END][64] = {
    [RMPC_OK] = "no error",
    [RMPC_ERR_ARGUMENT] = "argument outside what the function takes",
    [RMPC_ERR_OP] = "no such op in this kernel",
    [RMPC_ERR_RANGE] = "ranges overlap, are unsorted, or are not backed by memory",
    [RMPC_ERR_NOMEM] = "no page left for a table",
    [RMPC_ERR_FULL] = "a list of fixed size is full",
    [RMPC_ERR_STATE] = "table entries contradict each other",
    [RMPC_ERR_KERNEL] = "no rules for this kernel version",
    [RMPC_ERR_RMP_NONE] = "the BIOS has reserved no memory for the RMP",
    [RMPC_ERR_RMP_ORDER] = "the RMP's base is above its end",
    [RMPC_ERR_RMP_SMALL] = "the RMP does not cover all memory and itself",
    [RMPC_ERR_RMP_CONFIG] = "no processor takes this setting of a segmented RMP",
    [RMPC_ERR_RMP_SEGMENT] = "the RMP's segment size is outside CPUID's bounds",
    [RMPC_ERR_RMP_COVER] = "the segmented RMP does not cover all memory",
};

const char *rmpc_status_text(enum rmpc_status status)
{
    if ((unsigned)status >= RMPC_STATUS_END)
        return "unknown status";
    return texts[status];
}
