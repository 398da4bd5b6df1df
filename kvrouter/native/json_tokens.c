/* JSON arrays of token ids. */
#include "module.h"

int kvr_add_json_tokens(PyObject *module)
{
    (void)module;
    return 0;
}
