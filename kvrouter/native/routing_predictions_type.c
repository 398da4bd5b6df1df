/* `PredictedBlocks`, as Python sees it; `kvrouter/routing/predictions.py` says what every method does. */
#include "index_arguments.h"
#include "index_keys.h"
#include "index_object.h"
#include "module.h"
#include "routing_landmarks.h"
#include "routing_predictions_object.h"

#define BLOCKS_MAX (1 << 30)
/* Known prefixes of up to so many ranks are put together without asking for memory. */
#define FEW 256

typedef PyObject *method(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

static PyObject *no_memory_or_none(int failed)
{
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static int read_time(PyObject *object, double *time)
{
    *time = PyFloat_AsDouble(object);
    return *time == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* A number of tokens or blocks; less than none is none. */
static int read_number(PyObject *object, size_t *number)
{
    Py_ssize_t value = PyLong_AsSsize_t(object);
    if (value == -1 && PyErr_Occurred())
        return -1;
    *number = value < 0 ? 0 : (size_t)value;
    return 0;
}

static int read_block_size(PyObject *object, size_t *block_size)
{
    if (read_number(object, block_size))
        return -1;
    if (*block_size != 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "block_size must be at least 1");
    return -1;
}

/* -- arguments that are many -------------------------------------------------------------------------------------- */

/* What ranks are known to hold: the items of a dictionary, rank to number. */
struct known {
    struct kvr_known few[FEW];
    struct kvr_known *all;
    size_t count;
};

/* Read it; `block_size` turns tokens to landmarks, 0 leaves numbers as they are. 0, or -1 with an exception set. */
static int open_known(struct known *known, PyObject *dictionary, size_t block_size)
{
    known->all = known->few;
    known->count = 0;
    if (!PyDict_Check(dictionary)) {
        PyErr_SetString(PyExc_TypeError, "what is known of ranks is a dict");
        return -1;
    }
    Py_ssize_t size = PyDict_Size(dictionary), place = 0;
    if (size > FEW && (known->all = PyMem_Malloc((size_t)size * sizeof *known->all)) == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    PyObject *key, *value;
    while (known->count < (size_t)size && PyDict_Next(dictionary, &place, &key, &value)) {
        struct kvr_known *each = &known->all[known->count];
        if (!PyLong_CheckExact(key) || !PyLong_CheckExact(value)) { /* Anything else could run code meanwhile. */
            PyErr_SetString(PyExc_TypeError, "ranks, and what is known of them, are integers");
            return -1;
        }
        if (kvr_read_rank(key, &each->rank) || read_number(value, &each->position))
            return -1;
        if (block_size != 0)
            each->position = kvr_landmarks_within(each->position / block_size);
        known->count++;
    }
    return 0;
}

static void close_known(struct known *known)
{
    if (known->all != known->few)
        PyMem_Free(known->all);
}

/* The landmarks among the hashes of a prompt, which come as the bytes of 64-bit numbers. */
static int open_marks(struct kvr_landmarks *marks, PyObject *hashes)
{
    Py_buffer view;
    if (PyObject_GetBuffer(hashes, &view, PyBUF_SIMPLE))
        return -1;
    int failed = kvr_landmarks_open(marks, view.buf, (size_t)view.len / sizeof(uint64_t));
    PyBuffer_Release(&view);
    if (failed)
        (void)PyErr_NoMemory();
    return failed;
}

/* -- whole prompts ------------------------------------------------------------------------------------------------ */

/* Note in `promised` that a rank has so many tokens, if `confirmed` has less. A first entry makes it a copy. */
static int promise_more(PyObject *confirmed, PyObject **promised, uint32_t rank, size_t tokens)
{
    PyObject *key = PyLong_FromUnsignedLong(rank), *value = PyLong_FromSsize_t((Py_ssize_t)tokens);
    int failed = key == NULL || value == NULL ? -1 : 0;
    PyObject *known = failed ? NULL : PyDict_GetItemWithError(confirmed, key);
    size_t before = 0;
    if (!failed && known != NULL)
        failed = read_number(known, &before);
    else if (!failed && PyErr_Occurred())
        failed = -1;
    if (!failed && tokens > before) {
        if (*promised == NULL)
            *promised = PyDict_Copy(confirmed);
        failed = *promised == NULL || PyDict_SetItem(*promised, key, value) ? -1 : 0;
    }
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed;
}

static PyObject *promise_all(PyObject *confirmed, const struct kvr_overlap *reach, size_t block_size, size_t tokens)
{
    /* An engine computes at least the last token itself, to have something to continue from. */
    size_t limit = tokens ? (tokens - 1) / block_size : 0;
    PyObject *promised = NULL;
    for (uint32_t word = 0; word < reach->words; word++) {
        for (uint64_t bits = reach->ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            size_t depth = kvr_landmark_depth(reach->depths[rank]);
            if (promise_more(confirmed, &promised, rank, (depth < limit ? depth : limit) * block_size)) {
                Py_XDECREF(promised);
                return NULL;
            }
        }
    }
    return promised != NULL ? promised : Py_NewRef(confirmed);
}

/* promised(confirmed, hashes, block_size, tokens) */
static PyObject *promised(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {
        "promised", 4, 4, {"confirmed", "hashes", "block_size", "tokens"}};
    PyObject *found[4];
    size_t block_size, tokens;
    struct known known;
    struct kvr_landmarks marks;
    struct kvr_overlap reach;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || read_block_size(found[2], &block_size) ||
        read_number(found[3], &tokens))
        return NULL;
    if (kvr_predictions_of(self)->written == 0 && PyDict_Check(found[0]))
        return Py_NewRef(found[0]);
    if (open_marks(&marks, found[1]))
        return NULL;
    PyObject *result = NULL;
    if (open_known(&known, found[0], block_size) == 0) {
        kvr_predictions_match(kvr_predictions_of(self), marks.all, marks.count, known.all, known.count, &reach);
        result = promise_all(found[0], &reach, block_size, tokens);
    }
    close_known(&known);
    kvr_landmarks_close(&marks);
    return result;
}

/* predict(rank, hashes, block_size, confirmed, promised, deadline, fresh) */
static PyObject *predict(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {
        "predict", 7, 7, {"rank", "hashes", "block_size", "confirmed", "promised", "deadline", "fresh"}};
    PyObject *found[7];
    uint32_t rank;
    size_t block_size, confirmed, promised;
    double deadline, fresh;
    struct kvr_landmarks marks;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank) ||
        read_block_size(found[2], &block_size) || read_number(found[3], &confirmed) ||
        read_number(found[4], &promised) ||
        read_time(found[5], &deadline) || read_time(found[6], &fresh) || open_marks(&marks, found[1]))
        return NULL;
    int failed = kvr_predictions_predict(kvr_predictions_of(self), rank, &marks, confirmed / block_size,
                                         promised / block_size, deadline, fresh);
    kvr_landmarks_close(&marks);
    return no_memory_or_none(failed);
}

/* follow(rank, is_live) */
static PyObject *follow(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"follow", 2, 2, {"rank", "is_live"}};
    PyObject *found[2];
    uint32_t rank;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank))
        return NULL;
    int is_live = PyObject_IsTrue(found[1]);
    if (is_live < 0)
        return NULL;
    return no_memory_or_none(kvr_predictions_follow(kvr_predictions_of(self), rank, is_live));
}

/* -- single runs -------------------------------------------------------------------------------------------------- */

static PyObject *store(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"store", 3, 3, {"rank", "hashes", "deadline"}};
    PyObject *found[3];
    uint32_t rank;
    double deadline;
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank) ||
        read_time(found[2], &deadline) || kvr_keys_open(&keys, found[1]))
        return NULL;
    int failed = kvr_predictions_store(kvr_predictions_of(self), rank, keys.array, keys.count, deadline);
    kvr_keys_close(&keys);
    return no_memory_or_none(failed);
}

static PyObject *put_depths(const struct kvr_overlap *reach)
{
    PyObject *depths = PyDict_New();
    for (uint32_t word = 0; depths != NULL && word < reach->words; word++) {
        for (uint64_t bits = reach->ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            PyObject *key = PyLong_FromUnsignedLong(rank), *value = PyLong_FromUnsignedLong(reach->depths[rank]);
            int failed = key == NULL || value == NULL || PyDict_SetItem(depths, key, value);
            Py_XDECREF(key);
            Py_XDECREF(value);
            if (failed) {
                Py_DECREF(depths);
                return NULL;
            }
        }
    }
    return depths;
}

/* match(hashes, known) -> rank to depth */
static PyObject *match(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match", 2, 2, {"hashes", "known"}};
    PyObject *found[2], *result = NULL;
    struct kvr_keys keys;
    struct known known;
    struct kvr_overlap reach;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_keys_open(&keys, found[0]))
        return NULL;
    if (open_known(&known, found[1], 0) == 0) {
        kvr_predictions_match(kvr_predictions_of(self), keys.array, keys.count, known.all, known.count, &reach);
        result = put_depths(&reach);
    }
    close_known(&known);
    kvr_keys_close(&keys);
    return result;
}

static PyObject *deadline(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"deadline", 2, 2, {"rank", "key"}};
    PyObject *found[2];
    uint32_t rank;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank))
        return NULL;
    uint64_t key = PyLong_AsUnsignedLongLong(found[1]);
    if (key == UINT64_MAX && PyErr_Occurred())
        return NULL;
    const struct kvr_note *note = kvr_predictions_find(kvr_predictions_of(self), rank, key);
    if (note == NULL)
        Py_RETURN_NONE;
    return PyFloat_FromDouble(note->deadline);
}

static PyObject *expire(PyObject *self, PyObject *now)
{
    double time;
    if (read_time(now, &time))
        return NULL;
    kvr_predictions_expire(kvr_predictions_of(self), time);
    Py_RETURN_NONE;
}

static PyObject *drop(PyObject *self, PyObject *object)
{
    uint32_t rank;
    if (kvr_read_rank(object, &rank))
        return NULL;
    kvr_predictions_drop(kvr_predictions_of(self), rank);
    Py_RETURN_NONE;
}

static PyObject *blocks(PyObject *self, PyObject *object)
{
    uint32_t rank;
    if (kvr_read_rank(object, &rank))
        return NULL;
    const struct kvr_predictions *predictions = kvr_predictions_of(self);
    return PyLong_FromSsize_t(rank < predictions->ranks_max ? (Py_ssize_t)predictions->ranks[rank].distinct : 0);
}

static PyObject *nbytes(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromSsize_t((Py_ssize_t)(sizeof(struct kvr_predictions_object) + kvr_predictions_of(self)->bytes));
}

static Py_ssize_t length(PyObject *self)
{
    return (Py_ssize_t)kvr_predictions_of(self)->written;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static int read_bound(const char *name, Py_ssize_t bound)
{
    if (bound >= 0 && bound <= BLOCKS_MAX)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s is %zd; it must be 0..%d", name, bound, BLOCKS_MAX);
    return -1;
}

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"blocks_max", "total_max", NULL};
    Py_ssize_t blocks_max = 65536, total_max = 4194304;
    uint64_t secret;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "|nn:PredictedBlocks", known, &blocks_max, &total_max) ||
        read_bound("blocks_max", blocks_max) || read_bound("total_max", total_max) || kvr_read_secret(&secret))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = allocate(type, 0);
    if (self != NULL && kvr_predictions_open(kvr_predictions_of(self), secret, (size_t)blocks_max, (size_t)total_max)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    kvr_predictions_close(kvr_predictions_of(object));
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))(method *)function, METH_FASTCALL | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    FAST("promised", promised),
    FAST("predict", predict),
    FAST("follow", follow),
    FAST("store", store),
    FAST("match", match),
    FAST("deadline", deadline),
    {"expire", expire, METH_O, NULL},
    {"drop", drop, METH_O, NULL},
    {"blocks", blocks, METH_O, NULL},
    {"nbytes", nbytes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native form of kvrouter.routing.predictions.PredictedBlocks."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_mp_length, (void *)length},
    {Py_sq_length, (void *)length},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.PredictedBlocks",
    .basicsize = sizeof(struct kvr_predictions_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_predictions_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "PredictedBlocks", type);
    Py_DECREF(type);
    return failed;
}
