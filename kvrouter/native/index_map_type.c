/* `MappedIndex`, as Python sees it, and the methods by which an index lets itself be mapped. `kvrouter/index/mapped.py`
 * completes both: files and their locks are its business. */
#include "hashing.h"
#include "index_arguments.h"
#include "index_keys.h"
#include "index_map.h"
#include "index_object.h"
#include "module.h"

#include <errno.h>

#ifndef _WIN32
#include <sched.h>
#include <sys/file.h>
#include <time.h>
#endif

#define ATTEMPTS_AT_ONCE 16
#define PAUSE_NANOSECONDS 20000
/* So often, at least, it is looked whether the writer lives. */
#define LOOK_NANOSECONDS 200000000u

struct kvr_map_object {
    PyObject_HEAD
    struct kvr_map map;
    struct kvr_answers answers;
    PyObject *busy, *stale; /* classes of exceptions */
    uint64_t patience_nanoseconds, looked_at;
};

static struct kvr_map_object *object_of(PyObject *object)
{
    return (struct kvr_map_object *)(void *)object;
}

/* -- the writer --------------------------------------------------------------------------------------------------- */

#ifdef _WIN32

static uint64_t now(void)
{
    return 0;
}

static int is_writer_gone(const struct kvr_map *map)
{
    (void)map;
    return 1;
}

static void pause_unlocked(void) {}

#else

static uint64_t now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* It holds a lock on the file as long as it lives. */
static int is_writer_gone(const struct kvr_map *map)
{
    if (flock(map->file, LOCK_SH | LOCK_NB))
        return 0;
    (void)flock(map->file, LOCK_UN);
    return 1;
}

static void pause_unlocked(void)
{
    PyThreadState *thread = PyEval_SaveThread();
    struct timespec pause = {0, PAUSE_NANOSECONDS};
    (void)nanosleep(&pause, NULL);
    PyEval_RestoreThread(thread);
}

#endif

/* 0 while somebody keeps the index true, or it is one that never changes; -1 with an exception set. */
static int check_writer(struct kvr_map_object *object, int is_time)
{
    struct kvr_map *map = &object->map;
    if (map->base == NULL) {
        PyErr_SetString(object->stale, "the mapping was closed");
        return -1;
    }
    uint32_t state = kvr_map_state(map);
    if (state == KVR_SHARED_FROZEN)
        return 0;
    if (state != KVR_SHARED_LIVE) {
        PyErr_SetString(object->stale, "the process that wrote the index has closed it");
        return -1;
    }
    uint64_t time = now();
    if (!is_time && time - object->looked_at < LOOK_NANOSECONDS)
        return 0;
    object->looked_at = time;
    /* It may have ended in good order since. */
    if (!is_writer_gone(map) || kvr_map_state(map) == KVR_SHARED_FROZEN)
        return 0;
    PyErr_SetString(object->stale, "the process that wrote the index is gone");
    return -1;
}

/* -- matching ----------------------------------------------------------------------------------------------------- */

static int find_tier(const struct kvr_map *map, PyObject *name)
{
    Py_ssize_t length;
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &length) : NULL;
    if (text == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "the name of a tier is a str");
        return -2;
    }
    for (uint32_t tier = 0; tier < kvr_map_tiers(map); tier++) {
        size_t size;
        const char *known = kvr_map_tier(map, tier, &size);
        if (size == (size_t)length && memcmp(known, text, size) == 0)
            return (int)tier;
    }
    return -1;
}

/* Which tiers count. 1 if it is not all of them, 0 if it is, -1 with an exception set. */
static int select_tiers(const struct kvr_map *map, PyObject *names, uint8_t *selected)
{
    if (!kvr_is_given(names))
        return 0;
    PyObject *list = PySequence_List(names);
    if (list == NULL)
        return -1;
    memset(selected, 0, KVR_SHARED_TIERS_MAX);
    for (Py_ssize_t at = 0; at < PyList_Size(list); at++) {
        int tier = find_tier(map, PyList_GetItem(list, at));
        if (tier == -2) {
            Py_DECREF(list);
            return -1;
        }
        if (tier >= 0)
            selected[tier] = 1;
    }
    Py_DECREF(list);
    return 1;
}

/* Match until it succeeds, the hashes cannot be read, or patience ends. */
static enum kvr_outcome match_patiently(struct kvr_map_object *object, const struct kvr_keys *keys,
                                        const uint8_t *selected, struct kvr_reaches *reaches)
{
    uint64_t began = 0;
    for (;;) {
        if (check_writer(object, began != 0))
            return KVR_MAP_BUSY;
        enum kvr_outcome outcome = kvr_map_match(&object->map, keys, selected, reaches, ATTEMPTS_AT_ONCE);
        if (outcome != KVR_MAP_BUSY)
            return outcome;
        uint64_t time = now();
        began = began ? began : time;
        if (time - began >= object->patience_nanoseconds) {
            if (check_writer(object, 1) == 0)
                PyErr_SetString(object->busy, "the index was changed all the time");
            return KVR_MAP_BUSY;
        }
        pause_unlocked();
    }
}

static int match_keys(PyObject *self, struct kvr_keys *keys, PyObject *tiers, struct kvr_reaches *reaches)
{
    struct kvr_map_object *object = object_of(self);
    uint8_t selected[KVR_SHARED_TIERS_MAX];
    if (check_writer(object, 0))
        return -1;
    int some = select_tiers(&object->map, tiers, selected);
    if (some < 0)
        return -1;
    enum kvr_outcome outcome = match_patiently(object, keys, some ? selected : NULL, reaches);
    if (outcome == KVR_UNREADABLE) {
        if (kvr_keys_fetch(keys))
            return -1;
        outcome = match_patiently(object, keys, some ? selected : NULL, reaches);
    }
    return outcome == KVR_MATCHED ? 0 : -1;
}

static int match(PyObject *self, PyObject *hashes, PyObject *tiers, struct kvr_reaches *reaches)
{
    struct kvr_keys keys;
    if (kvr_keys_open_lazily(&keys, hashes))
        return -1;
    int failed = match_keys(self, &keys, tiers, reaches);
    kvr_keys_close(&keys);
    return failed;
}

static PyObject *match_depths(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_depths", 1, 2, {"hashes", "tiers"}};
    PyObject *found[2];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || match(self, found[0], found[1], &reaches))
        return NULL;
    return kvr_answers_depths(&object_of(self)->answers, reaches.all, reaches.count, reaches.words);
}

/* match(hashes, tiers) -> Overlap */
static PyObject *match_overlap(PyObject *self, PyTypeObject *defining, PyObject *const *arguments, Py_ssize_t count,
                               PyObject *names)
{
    static const struct kvr_signature signature = {"match", 1, 2, {"hashes", "tiers"}};
    PyObject *found[2];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || match(self, found[0], found[1], &reaches))
        return NULL;
    return kvr_answers_overlap(&object_of(self)->answers, self, defining, &reaches);
}

static PyObject *match_best(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_best", 1, 3, {"hashes", "k", "tiers"}};
    PyObject *found[3];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    Py_ssize_t k = kvr_read_k(found[1]);
    if (k < 0 || match(self, found[0], found[2], &reaches))
        return NULL;
    return kvr_list_best(&reaches, k);
}

/* -- the rest ----------------------------------------------------------------------------------------------------- */

static PyObject *tiers(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct kvr_map_object *object = object_of(self);
    if (check_writer(object, 0))
        return NULL;
    uint32_t count = kvr_map_tiers(&object->map);
    PyObject *names = PyTuple_New((Py_ssize_t)count);
    for (uint32_t tier = 0; names != NULL && tier < count; tier++) {
        size_t length;
        const char *text = kvr_map_tier(&object->map, tier, &length);
        PyObject *name = PyUnicode_FromStringAndSize(text, (Py_ssize_t)length);
        if (name == NULL || PyTuple_SetItem(names, (Py_ssize_t)tier, name)) {
            Py_DECREF(names);
            return NULL;
        }
    }
    return names;
}

/* Raise if nobody keeps the index true any more. */
static PyObject *check(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (check_writer(object_of(self), 1))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *counts(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct kvr_map *map = &object_of(self)->map;
    return Py_BuildValue("{s:n,s:n,s:n}", "retries", (Py_ssize_t)map->retries, "remaps", (Py_ssize_t)map->remaps,
                         "bytes", (Py_ssize_t)map->length);
}

static PyObject *close_map(PyObject *self, PyObject *unused)
{
    (void)unused;
    kvr_map_close(&object_of(self)->map);
    Py_RETURN_NONE;
}

/* MappedIndex(file, patience_nanoseconds, busy, stale): a file descriptor, which it takes over */
static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"file", "patience_nanoseconds", "busy", "stale", NULL};
    int file;
    long long patience;
    PyObject *busy, *stale;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "iLOO:MappedIndex", known, &file, &patience, &busy, &stale))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self == NULL)
        return NULL;
    const char *wrong = kvr_map_open(&object_of(self)->map, file);
    if (wrong != NULL) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    object_of(self)->busy = Py_NewRef(busy);
    object_of(self)->stale = Py_NewRef(stale);
    object_of(self)->patience_nanoseconds = (uint64_t)patience;
    return self;
}

static void dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    kvr_map_close(&object_of(self)->map);
    kvr_answers_close(&object_of(self)->answers);
    Py_XDECREF(object_of(self)->busy);
    Py_XDECREF(object_of(self)->stale);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

typedef PyObject *method(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))(method *)function, METH_FASTCALL | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    FAST("match_depths", match_depths),
    {"match", (PyCFunction)(void (*)(void))match_overlap, METH_METHOD | METH_FASTCALL | METH_KEYWORDS, NULL},
    FAST("match_best", match_best),
    {"tiers", tiers, METH_NOARGS, NULL},
    {"check", check, METH_NOARGS, NULL},
    {"counts", counts, METH_NOARGS, NULL},
    {"close", close_map, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native part of kvrouter.index.mapped.MappedIndex."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.MappedIndex",
    .basicsize = sizeof(struct kvr_map_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int kvr_add_mapped_index_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "MappedIndex", type);
    Py_DECREF(type);
    return failed;
}

/* -- the writer's methods ----------------------------------------------------------------------------------------- */

/* share(file, path, capacity): let others map the index; None, or the number of an error of the system */
PyObject *kvr_share_index(PyObject *self, PyObject *arguments)
{
    int file;
    Py_ssize_t capacity;
    const char *path;
    if (!PyArg_ParseTuple(arguments, "isn:share", &file, &path, &capacity))
        return NULL;
    struct kvr_index *index = kvr_index_of(self);
    if (index->share != NULL || index->tier_count > 0) {
        PyErr_SetString(PyExc_RuntimeError, "only a new index can be shared");
        return NULL;
    }
    errno = 0;
    if (capacity <= 0 || kvr_index_share(index, file, path, (size_t)capacity))
        return PyLong_FromLong(errno ? errno : ENOMEM);
    Py_RETURN_NONE;
}

PyObject *kvr_freeze_index(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct kvr_index *index = kvr_index_of(self);
    if (index->share == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the index is not shared");
        return NULL;
    }
    if (kvr_index_freeze(index))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}
