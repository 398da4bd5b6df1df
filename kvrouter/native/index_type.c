/* `PrefixIndex`, as Python sees it. `kvrouter/index/native.py` completes it; `kvrouter/index/reference.py` says what
 * every method does. */
#include "hashing.h"
#include "index_arguments.h"
#include "index_keys.h"
#include "index_object.h"
#include "index_snapshot.h"
#include "module.h"

typedef PyObject *method(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

static PyObject *no_memory_or_none(int failed)
{
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* -- changes ------------------------------------------------------------------------------------------------------ */

/* Read (rank, hashes, tier) for a change. The number of the tier, or as kvr_read_tier; keys are open if it is >= 0. */
static int read_change(PyObject *self, PyObject **found, uint32_t *rank, struct kvr_keys *keys, int is_new)
{
    if (kvr_read_rank(found[0], rank))
        return -2;
    int tier;
    if (found[2] != NULL)
        tier = is_new ? kvr_read_new_tier(kvr_index_of(self), found[2]) : kvr_read_tier(kvr_index_of(self), found[2]);
    else
        tier = kvr_index_find_tier(kvr_index_of(self), "gpu", 3);
    if (tier == -1 && is_new) {
        tier = kvr_index_add_tier(kvr_index_of(self), "gpu", 3);
        if (tier < 0) {
            (void)PyErr_NoMemory();
            return -2;
        }
    }
    if (tier >= 0 && kvr_keys_open(keys, found[1]))
        return -2;
    return tier;
}

static PyObject *store(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"store", 2, 3, {"rank", "hashes", "tier"}};
    PyObject *found[3];
    uint32_t rank;
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int tier = read_change(self, found, &rank, &keys, 1);
    if (tier < 0)
        return NULL;
    int failed = kvr_index_store(kvr_index_of(self), rank, keys.array, keys.count, (uint32_t)tier);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

/* store_chain(rank, hashes, parent, tier): `parent` is the hash before the first, or None */
static PyObject *store_chain(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"store_chain", 2, 4, {"rank", "hashes", "parent", "tier"}};
    PyObject *found[4];
    uint32_t rank;
    struct kvr_keys keys;
    uint64_t parent = 0;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int has_parent = kvr_is_given(found[2]);
    if (has_parent && kvr_read_uint64(found[2], &parent))
        return NULL;
    PyObject *change[] = {found[0], found[1], found[3]};
    int tier = read_change(self, change, &rank, &keys, 1);
    if (tier < 0)
        return NULL;
    int failed = kvr_index_store_chain(kvr_index_of(self), rank, has_parent ? &parent : NULL, keys.array, keys.count,
                                       (uint32_t)tier, NULL);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *remove_(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"remove", 2, 3, {"rank", "hashes", "tier"}};
    PyObject *found[3];
    uint32_t rank;
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int tier = read_change(self, found, &rank, &keys, 0);
    if (tier < 0)
        return tier == -2 ? NULL : Py_NewRef(Py_None);
    int failed = kvr_index_remove(kvr_index_of(self), rank, keys.array, keys.count, (uint32_t)tier);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *clear(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"clear", 1, 2, {"rank", "tier"}};
    PyObject *found[2];
    uint32_t rank;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank))
        return NULL;
    if (!kvr_is_given(found[1])) {
        for (uint32_t tier = 0; tier < kvr_index_of(self)->tier_count; tier++)
            kvr_index_clear(kvr_index_of(self), rank, tier);
        Py_RETURN_NONE;
    }
    int tier = kvr_read_tier(kvr_index_of(self), found[1]);
    if (tier == -2)
        return NULL;
    if (tier >= 0)
        kvr_index_clear(kvr_index_of(self), rank, (uint32_t)tier);
    Py_RETURN_NONE;
}

/* -- the bound ---------------------------------------------------------------------------------------------------- */

/* bytes_max as an argument: 0, or -1 with an exception set. */
static int read_bytes_max(PyObject *arguments, PyObject *names, size_t *bytes_max)
{
    static char *known[] = {"bytes_max", NULL};
    PyObject *bound = Py_None;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "|O:PrefixIndex", known, &bound))
        return -1;
    *bytes_max = 0;
    if (bound == Py_None)
        return 0;
    Py_ssize_t value = PyLong_AsSsize_t(bound);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value < (Py_ssize_t)KVR_BYTES_MAX_LEAST) {
        PyErr_Format(PyExc_ValueError, "bytes_max is %zd; it must be at least %zd", value,
                     (Py_ssize_t)KVR_BYTES_MAX_LEAST);
        return -1;
    }
    *bytes_max = (size_t)value;
    return 0;
}

/* -- the rest ----------------------------------------------------------------------------------------------------- */

static PyObject *blocks(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"blocks", 1, 2, {"rank", "tier"}};
    PyObject *found[2];
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    uint32_t rank;
    if (kvr_read_rank(found[0], &rank)) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError))
            return NULL;
        PyErr_Clear();
        return PyLong_FromLong(0);
    }
    size_t held = 0;
    if (kvr_is_given(found[1])) {
        int tier = kvr_read_tier(kvr_index_of(self), found[1]);
        if (tier == -2)
            return NULL;
        held = tier >= 0 ? kvr_index_blocks(kvr_index_of(self), rank, (uint32_t)tier) : 0;
    } else {
        for (uint32_t tier = 0; tier < kvr_index_of(self)->tier_count; tier++)
            held += kvr_index_blocks(kvr_index_of(self), rank, tier);
    }
    return PyLong_FromSsize_t((Py_ssize_t)held);
}

static PyObject *tiers(PyObject *object, PyObject *unused)
{
    (void)unused;
    const struct kvr_index *index = kvr_index_of(object);
    PyObject *names = PyTuple_New((Py_ssize_t)index->tier_count);
    for (uint32_t tier = 0; names != NULL && tier < index->tier_count; tier++) {
        PyObject *name = PyUnicode_FromStringAndSize(index->tiers[tier].name, (Py_ssize_t)index->tiers[tier].length);
        if (name == NULL || PyTuple_SetItem(names, (Py_ssize_t)tier, name)) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

static PyObject *nbytes(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)(sizeof(struct kvr_index_object) + kvr_index_of(object)->bytes +
                                          kvr_answers_bytes(kvr_answers_of(object))));
}

/* Distinct blocks of which it is known what they follow. */
static PyObject *placed(PyObject *object, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)kvr_index_of(object)->stretches.blocks);
}

static PyObject *dump(PyObject *object, PyObject *unused)
{
    (void)unused;
    return kvr_index_dump(kvr_index_of(object));
}

/* load(tables, tiers): fill a new index from what `dump` returned */
static PyObject *load(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"load", 2, 2, {"tables", "tiers"}};
    PyObject *found[2];
    Py_buffer view;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    unsigned long tier_count = PyLong_AsUnsignedLong(found[1]);
    if (PyErr_Occurred())
        return NULL;
    if (kvr_index_of(self)->tier_count) {
        PyErr_SetString(PyExc_RuntimeError, "only a new index can be loaded");
        return NULL;
    }
    if (PyObject_GetBuffer(found[0], &view, PyBUF_SIMPLE))
        return NULL;
    int failed = kvr_index_load(kvr_index_of(self), view.buf, (size_t)view.len, (uint32_t)tier_count);
    PyBuffer_Release(&view);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static Py_ssize_t length(PyObject *object)
{
    return (Py_ssize_t)kvr_index_distinct(kvr_index_of(object));
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    uint64_t secret;
    size_t bytes_max;
    if (read_bytes_max(arguments, names, &bytes_max) || kvr_read_secret(&secret))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self != NULL && kvr_index_open(kvr_index_of(self), secret)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (self != NULL)
        kvr_index_of(self)->budget.bytes_max = bytes_max;
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    kvr_index_close(kvr_index_of(object));
    kvr_answers_close(kvr_answers_of(object));
    kvr_pages_close(&kvr_index_of(object)->beside);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))(method *)function, METH_FASTCALL | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    FAST("store", store),
    FAST("store_chain", store_chain),
    FAST("remove", remove_),
    FAST("clear", clear),
    FAST("match_depths", kvr_match_depths),
    {"match", (PyCFunction)(void (*)(void))kvr_match, METH_METHOD | METH_FASTCALL | METH_KEYWORDS, NULL},
    FAST("match_tokens", kvr_match_tokens),
    FAST("match_best", kvr_match_best),
    FAST("match_many_arrays", kvr_match_many),
    FAST("holds_bytes", kvr_holds_bytes),
    FAST("blocks", blocks),
    FAST("load", load),
    {"doubt", kvr_budget_doubt, METH_O, NULL},
    {"trust", kvr_budget_trust, METH_O, NULL},
    {"dropped", kvr_budget_dropped, METH_NOARGS, NULL},
    {"charge", kvr_budget_charge, METH_O, NULL},
    {"admit", kvr_budget_admit, METH_O, NULL},
    {"losses", kvr_budget_losses, METH_NOARGS, NULL},
    {"bytes_max", kvr_budget_bytes_max, METH_NOARGS, NULL},
    {"nbytes_beside", kvr_budget_beside, METH_NOARGS, NULL},
    {"tiers", tiers, METH_NOARGS, NULL},
    {"nbytes", nbytes, METH_NOARGS, NULL},
    {"share", kvr_share_index, METH_VARARGS, NULL},
    {"freeze", kvr_freeze_index, METH_NOARGS, NULL},
    {"placed", placed, METH_NOARGS, NULL},
    {"dump", dump, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native part of kvrouter.index.native.PrefixIndex."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_mp_length, (void *)length},
    {Py_sq_length, (void *)length},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.PrefixIndex",
    .basicsize = sizeof(struct kvr_index_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int kvr_add_index_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "PrefixIndex", type);
    Py_DECREF(type);
    return failed;
}
