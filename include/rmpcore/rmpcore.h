/* rmpcore: AMD SEV-SNP's Reverse Map Table and the Linux direct map, bit for bit.  Includes all headers. */
#ifndef RMPCORE_RMPCORE_H
#define RMPCORE_RMPCORE_H

#include "api.h"
#include "emulate.h"
#include "op.h"

#endif
