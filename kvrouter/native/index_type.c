/* The prefix index: nothing native yet; the reference is used. */
#include "module.h"

int kvr_add_index_type(PyObject *module)
{
    (void)module;
    return 0;
}
