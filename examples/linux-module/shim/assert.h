/* For the core's headers inside the kernel, which is built without the compiler's own. */
#include <linux/build_bug.h>
