/* `Overlap`: what a match finds, as it was found. Arrays and dictionaries are made when they are asked for.
 * `kvrouter/index/overlap.py` says what it is to its users. */
#include "index_answers.h"
#include "module.h"

/* So many have a place in the object itself. */
#define FEW_REACHES 8

struct overlap_object {
    PyObject_HEAD
    PyObject *owner;             /* has the answers */
    struct kvr_answers *answers; /* NULL after a failure to make the object */
    struct kvr_reach *reaches;
    uint32_t words, count;
    struct kvr_reach few[FEW_REACHES];
};

static struct overlap_object *overlap_of(PyObject *object)
{
    return (struct overlap_object *)(void *)object;
}

static PyObject *find_type(struct kvr_answers *answers, PyTypeObject *defining)
{
    if (answers->overlap_type == NULL)
        answers->overlap_type = (PyObject *)kvr_sibling_type(defining, "Overlap");
    return answers->overlap_type;
}

PyObject *kvr_answers_overlap(struct kvr_answers *answers, PyObject *owner, PyTypeObject *defining,
                              const struct kvr_reaches *reaches)
{
    PyObject *type = find_type(answers, defining);
    PyObject *self = type ? PyType_GenericAlloc((PyTypeObject *)type, 0) : NULL;
    if (self == NULL)
        return NULL;
    struct overlap_object *overlap = overlap_of(self);
    overlap->reaches = overlap->few;
    if (reaches->count > FEW_REACHES)
        overlap->reaches = PyMem_Malloc(reaches->count * sizeof *overlap->reaches);
    if (overlap->reaches == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    memcpy(overlap->reaches, reaches->all, reaches->count * sizeof *overlap->reaches);
    overlap->words = reaches->words;
    overlap->count = reaches->count;
    overlap->owner = Py_NewRef(owner);
    overlap->answers = answers;
    return self;
}

static void dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    struct overlap_object *overlap = overlap_of(self);
    if (overlap->reaches != overlap->few)
        PyMem_Free(overlap->reaches);
    Py_XDECREF(overlap->owner);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* -- what is asked for -------------------------------------------------------------------------------------------- */

static PyObject *depths(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct overlap_object *overlap = overlap_of(self);
    return kvr_answers_depths(overlap->answers, overlap->reaches, overlap->count, overlap->words);
}

/* An array of uint32 numbers. */
static PyObject *make_array(const uint32_t *numbers, uint32_t count)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *bytes = PyByteArray_FromStringAndSize((const char *)numbers, (Py_ssize_t)(count * sizeof *numbers));
    PyObject *array = numpy && bytes ? PyObject_CallMethod(numpy, "frombuffer", "Os", bytes, "uint32") : NULL;
    Py_XDECREF(bytes);
    Py_XDECREF(numpy);
    return array;
}

static PyObject *list_one(PyObject *self, int is_depths)
{
    const struct overlap_object *overlap = overlap_of(self);
    struct kvr_overlap found;
    uint32_t ranks[KVR_RANKS_MAX];
    kvr_reaches_spread(overlap->reaches, overlap->count, overlap->words, &found);
    uint32_t count = kvr_overlap_list(&found, ranks, found.depths);
    return make_array(is_depths ? found.depths : ranks, count);
}

static PyObject *get_ranks(PyObject *self, void *unused)
{
    (void)unused;
    return list_one(self, 0);
}

static PyObject *get_blocks(PyObject *self, void *unused)
{
    (void)unused;
    return list_one(self, 1);
}

static PyMethodDef methods[] = {
    {"depths", depths, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"ranks", get_ranks, NULL, NULL, NULL},
    {"blocks", get_blocks, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"What a match found; see kvrouter.index.Overlap."},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.Overlap",
    .basicsize = sizeof(struct overlap_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};

int kvr_add_overlap_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Overlap", type);
    Py_DECREF(type);
    return failed;
}
