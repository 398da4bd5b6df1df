/* What the dictionaries of a rank's aliases say: which hashes stores wait for, and which namespace a block is in. They are
 * the reference's own, and empty nearly always. */
#include "hashing.h"
#include "ingest_object.h"

static PyObject *make_integer(uint64_t value)
{
    return PyLong_FromUnsignedLongLong(value);
}

/* The value of a hash in a dictionary, borrowed; NULL if there is none or, with an exception set, if it failed. */
static PyObject *look_up(PyObject *dictionary, uint64_t hash)
{
    PyObject *key = make_integer(hash);
    PyObject *found = key ? PyDict_GetItemWithError(dictionary, key) : NULL;
    Py_XDECREF(key);
    return found;
}

int kvr_has_orphans(const struct kvr_table_object *table, const uint64_t *hashes, size_t count)
{
    if (PyDict_Size(table->orphans) == 0)
        return 0;
    for (size_t at = 0; at < count; at++) {
        if (look_up(table->orphans, hashes[at]) != NULL)
            return 1;
        if (PyErr_Occurred())
            return -1;
    }
    return 0;
}

int kvr_inherit(const struct kvr_table_object *table, const struct kvr_event *event, PyObject **namespace,
                uint64_t *seed)
{
    *namespace = NULL;
    *seed = KVR_HASH_SEED;
    if (!event->has_parent || PyDict_Size(table->namespaces) == 0)
        return KVR_APPLIED;
    *namespace = look_up(table->namespaces, event->parent);
    if (*namespace == NULL)
        return PyErr_Occurred() ? KVR_FAILED : KVR_APPLIED;
    PyObject *known = PyDict_GetItemWithError(table->seeds, *namespace);
    if (known == NULL)
        return PyErr_Occurred() ? KVR_FAILED : KVR_LEFT;
    return kvr_read_uint64(known, seed) ? KVR_FAILED : KVR_APPLIED;
}

int kvr_note_namespace(const struct kvr_table_object *table, uint64_t hash, PyObject *namespace)
{
    PyObject *key = make_integer(hash);
    int failed = key == NULL || PyDict_SetItem(table->namespaces, key, namespace);
    Py_XDECREF(key);
    return failed ? KVR_FAILED : KVR_APPLIED;
}
