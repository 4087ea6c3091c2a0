/* The version that the library was built as. */
#include "rmpcore/api.h"

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

int rmpc_abi(void)
{
    return RMPC_ABI;
}

const char *rmpc_version(void)
{
    return TEXT(RMPC_VERSION_MAJOR) "." TEXT(RMPC_VERSION_MINOR) "." TEXT(RMPC_VERSION_PATCH);
}
