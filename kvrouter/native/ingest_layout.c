/* What a rank's table is told of what lies beside it: the reference's own dictionaries, and the groups of layers that
 * events have told of. */
#include "hashing.h"
#include "index_arguments.h"
#include "ingest_object.h"

static void take_over(PyObject **member, PyObject *dictionary)
{
    Py_XDECREF(*member);
    *member = Py_NewRef(dictionary);
}

PyObject *kvr_attach(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"attach", 4, 4, {"namespaces", "inner", "orphans", "seeds"}};
    PyObject *found[4];
    struct kvr_table_object *table = kvr_table_of(self);
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    for (int at = 0; at < 4; at++) {
        if (!PyDict_Check(found[at])) {
            PyErr_Format(PyExc_TypeError, "%s is not a dict", signature.names[at]);
            return NULL;
        }
    }
    take_over(&table->namespaces, found[0]);
    take_over(&table->inner, found[1]);
    take_over(&table->orphans, found[2]);
    take_over(&table->seeds, found[3]);
    Py_RETURN_NONE;
}

static int read_group(PyObject *item, struct kvr_group *group)
{
    unsigned int number, block_size;
    int has_kind, is_mamba, is_full;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a group is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "IIppp", &number, &block_size, &has_kind, &is_mamba, &is_full))
        return -1;
    struct kvr_group read = {number, block_size, (uint8_t)has_kind, (uint8_t)is_mamba, (uint8_t)is_full};
    *group = read;
    return 0;
}

/* describe(unit, groups): what is known of the layout, groups as (group, block size, has a kind, is Mamba, is full) */
PyObject *kvr_describe(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"describe", 2, 2, {"unit", "groups"}};
    PyObject *found[2];
    struct kvr_table_object *table = kvr_table_of(self);
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    unsigned long unit = PyLong_AsUnsignedLong(found[0]);
    if (PyErr_Occurred())
        return NULL;
    if (!PyList_Check(found[1])) {
        PyErr_SetString(PyExc_TypeError, "groups is not a list");
        return NULL;
    }
    size_t groups = (size_t)PyList_Size(found[1]);
    struct kvr_group *read = PyMem_Malloc((groups + 1) * sizeof *read);
    if (read == NULL)
        return PyErr_NoMemory();
    for (size_t at = 0; at < groups; at++) {
        if (read_group(PyList_GetItem(found[1], (Py_ssize_t)at), read + at)) {
            PyMem_Free(read);
            return NULL;
        }
    }
    PyMem_Free(table->groups);
    table->groups = read;
    table->group_count = (uint32_t)groups;
    table->unit = unit > KVR_BLOCK_SIZE_MAX ? 0 : (uint32_t)unit;
    Py_RETURN_NONE;
}
