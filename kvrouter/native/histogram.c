/* Counts per bucket, with the sum: `Histogram` of `kvrouter/service/traffic.py` is the specification. */
#include "module.h"

#define BOUNDS_MAX 32

struct histogram {
    PyObject_HEAD
    Py_ssize_t size; /* of the bounds; there is one bucket more */
    double total;
    double bounds[BOUNDS_MAX];
    long long counts[BOUNDS_MAX + 1];
};

static struct histogram *histogram_of(PyObject *object)
{
    return (struct histogram *)(void *)object;
}

/* observe(value) */
static PyObject *observe(PyObject *object, PyObject *argument)
{
    double value = PyFloat_AsDouble(argument);
    if (value == -1.0 && PyErr_Occurred())
        return NULL;
    struct histogram *histogram = histogram_of(object);
    Py_ssize_t at = 0;
    while (at < histogram->size && histogram->bounds[at] < value)
        at++;
    histogram->counts[at]++;
    histogram->total += value;
    Py_RETURN_NONE;
}

static PyObject *get_bounds(PyObject *object, void *closure)
{
    (void)closure;
    const struct histogram *histogram = histogram_of(object);
    PyObject *result = PyTuple_New(histogram->size);
    for (Py_ssize_t at = 0; result != NULL && at < histogram->size; at++) {
        PyObject *bound = PyFloat_FromDouble(histogram->bounds[at]);
        if (bound == NULL || PyTuple_SetItem(result, at, bound)) {
            Py_DECREF(result);
            return NULL;
        }
    }
    return result;
}

static PyObject *get_counts(PyObject *object, void *closure)
{
    (void)closure;
    const struct histogram *histogram = histogram_of(object);
    PyObject *result = PyList_New(histogram->size + 1);
    for (Py_ssize_t at = 0; result != NULL && at <= histogram->size; at++) {
        PyObject *count = PyLong_FromLongLong(histogram->counts[at]);
        if (count == NULL || PyList_SetItem(result, at, count)) {
            Py_DECREF(result);
            return NULL;
        }
    }
    return result;
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    static char *known[] = {"bounds", NULL};
    PyObject *bounds;
    if (!PyArg_ParseTupleAndKeywords(arguments, names, "O:Histogram", known, &bounds))
        return NULL;
    if (!PyTuple_Check(bounds) || PyTuple_Size(bounds) > BOUNDS_MAX) {
        PyErr_Format(PyExc_TypeError, "the bounds of a histogram are a tuple of at most %d numbers", BOUNDS_MAX);
        return NULL;
    }
    PyObject *self = PyType_GenericAlloc(type, 0); /* All zero. */
    if (self == NULL)
        return NULL;
    struct histogram *histogram = histogram_of(self);
    histogram->size = PyTuple_Size(bounds);
    for (Py_ssize_t at = 0; at < histogram->size; at++) {
        histogram->bounds[at] = PyFloat_AsDouble(PyTuple_GetItem(bounds, at));
        if (histogram->bounds[at] == -1.0 && PyErr_Occurred()) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return self;
}

static void dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"observe", observe, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"total", T_DOUBLE, offsetof(struct histogram, total), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"bounds", get_bounds, NULL, NULL, NULL},
    {"counts", get_counts, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"The native form of kvrouter.service.traffic.Histogram."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, properties},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.Histogram",
    .basicsize = sizeof(struct histogram),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

int kvr_add_histogram_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Histogram", type);
    Py_DECREF(type);
    return failed;
}
