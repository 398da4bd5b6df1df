/* What a rank's table knows, as Python's dictionaries and lists: for snapshots, digests and checks, not for every batch. */
#include "index_arguments.h"
#include "hashing.h"
#include "ingest_object.h"

static const char *const TIER_NAMES[KVR_TIERS] = {"gpu", "cpu", "disk"};

int kvr_read_place(PyObject *tier, PyObject *group, uint32_t *tier_number, uint32_t *group_number)
{
    unsigned long value = PyLong_AsUnsignedLong(group);
    if (PyErr_Occurred())
        return -1;
    if (value >= KVR_GROUPS_MAX) {
        PyErr_Format(PyExc_ValueError, "group is %lu; it must be 0..%d", value, KVR_GROUPS_MAX - 1);
        return -1;
    }
    *group_number = (uint32_t)value;
    const char *name = PyUnicode_Check(tier) ? PyUnicode_AsUTF8AndSize(tier, NULL) : NULL;
    for (*tier_number = 0; name != NULL && *tier_number < KVR_TIERS; ++*tier_number)
        if (strcmp(name, TIER_NAMES[*tier_number]) == 0)
            return 0;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%R is not a tier", tier);
    return -1;
}

struct export {
    const struct kvr_rank *rank;
    PyObject *into;
    uint32_t place;
};

static int put(PyObject *dictionary, uint64_t hash, uint64_t value)
{
    PyObject *key = PyLong_FromUnsignedLongLong(hash), *item = PyLong_FromUnsignedLongLong(value);
    int failed = key == NULL || item == NULL || PyDict_SetItem(dictionary, key, item);
    Py_XDECREF(key);
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static int export_meaning(void *context, const uint8_t *row, uint64_t hash)
{
    const struct export *export = context;
    if (!kvr_copies_is_known(&export->rank->copies, kvr_rank_number(export->rank, row, hash)))
        return 0;
    return put(export->into, kvr_unmix(hash, export->rank->secret), kvr_row_key(row));
}

PyObject *kvr_export_meanings(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    struct export export = {rank, PyDict_New(), 0};
    if (export.into != NULL && kvr_aliases_visit(&rank->aliases, export_meaning, &export)) {
        Py_DECREF(export.into);
        return NULL;
    }
    return export.into;
}

static int export_copies(void *context, const uint8_t *row, uint64_t hash)
{
    const struct export *export = context;
    uint32_t copies = kvr_copies_in(&export->rank->copies, kvr_rank_number(export->rank, row, hash), export->place);
    return copies ? put(export->into, kvr_unmix(hash, export->rank->secret), copies) : 0;
}

static int export_blocks(void *context, const uint8_t *row, uint64_t hash)
{
    const struct export *export = context;
    uint32_t number = kvr_rank_number(export->rank, row, hash);
    if (!kvr_copies_is_known(&export->rank->copies, number) ||
        !kvr_copies_in(&export->rank->copies, number, export->place))
        return 0;
    PyObject *key = PyLong_FromUnsignedLongLong(kvr_row_key(row));
    int failed = key == NULL || PyDict_SetItem(export->into, key, Py_None);
    Py_XDECREF(key);
    return failed ? -1 : 0;
}

static PyObject *export_place(PyObject *self, uint32_t place, kvr_visit_row *visit)
{
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    struct export export = {rank, PyDict_New(), place};
    if (export.into != NULL && kvr_aliases_visit(&rank->aliases, visit, &export)) {
        Py_DECREF(export.into);
        return NULL;
    }
    return export.into;
}

PyObject *kvr_export_blocks(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"blocks", 2, 2, {"tier", "group"}};
    PyObject *found[2];
    uint32_t tier, group;
    if (kvr_read_arguments(&signature, arguments, count, names, found) ||
        kvr_read_place(found[0], found[1], &tier, &group))
        return NULL;
    int place = kvr_rank_find_place(&kvr_table_of(self)->rank, tier, group);
    return place < 0 ? PyDict_New() : export_place(self, (uint32_t)place, export_blocks);
}

PyObject *kvr_export_copies(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    PyObject *all = PyDict_New();
    for (uint32_t number = 0; all != NULL && number < rank->place_count; number++) {
        const struct kvr_place *place = &rank->places[number];
        PyObject *name = Py_BuildValue("(sk)", TIER_NAMES[place->tier], (unsigned long)place->group);
        PyObject *here = name ? export_place(self, number, export_copies) : NULL;
        int failed = here == NULL || (PyDict_Size(here) > 0 && PyDict_SetItem(all, name, here));
        Py_XDECREF(name);
        Py_XDECREF(here);
        if (failed) {
            Py_DECREF(all);
            return NULL;
        }
    }
    return all;
}

PyObject *kvr_export_idle_hashes(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct kvr_rank *rank = &kvr_table_of(self)->rank;
    size_t count = kvr_queue_count(&rank->idle);
    uint64_t *hashes = PyMem_Malloc((count + 1) * sizeof *hashes);
    if (hashes == NULL)
        return PyErr_NoMemory();
    kvr_queue_list(&rank->idle, hashes);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t at = 0; list != NULL && at < count; at++) {
        PyObject *hash = PyLong_FromUnsignedLongLong(kvr_unmix(hashes[at], rank->secret));
        if (hash == NULL || PyList_SetItem(list, (Py_ssize_t)at, hash)) {
            Py_DECREF(list);
            list = NULL;
        }
    }
    PyMem_Free(hashes);
    return list;
}

PyObject *kvr_export_tiers(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct kvr_rank *rank = &kvr_table_of(self)->rank;
    int stored[KVR_TIERS] = {0};
    for (uint32_t number = 0; number < rank->place_count; number++)
        stored[rank->places[number].tier] = 1;
    PyObject *names = PyList_New(0);
    for (int tier = 0; names != NULL && tier < KVR_TIERS; tier++) {
        PyObject *name = stored[tier] ? PyUnicode_FromString(TIER_NAMES[tier]) : NULL;
        if (stored[tier] && (name == NULL || PyList_Append(names, name))) {
            Py_DECREF(names);
            names = NULL;
        }
        Py_XDECREF(name);
    }
    return names;
}
