/* What the module needs of rmpcore's C core: the RMP and its instructions.  As one unit, since the kernel's build wants
 * all of a module's objects in the module's own directory. */
#include "csrc/emulate.c"
#include "csrc/mem.c"
#include "csrc/rmp_insn.c"
#include "csrc/rmp_table.c"
#include "csrc/status.c"
