/* For the core inside the kernel: memcpy and memset are the kernel's. */
#include <linux/string.h>
