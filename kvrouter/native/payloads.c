/* Payloads in one piece of memory, as Python sees them; `payloads.h` says what for. */
#include "payloads.h"
#include "module.h"

#include <string.h>

struct payloads_object {
    PyObject_HEAD
    Py_ssize_t count;
    size_t *ends;  /* of each, counted from the first one's beginning */
    uint8_t *data; /* in the same piece, behind the ends */
};

static struct payloads_object *payloads_of(PyObject *object)
{
    return (struct payloads_object *)(void *)object;
}

static struct kvr_payload payload_at(const struct payloads_object *payloads, Py_ssize_t at)
{
    size_t start = at == 0 ? 0 : payloads->ends[at - 1];
    struct kvr_payload payload = {payloads->data + start, payloads->ends[at] - start};
    return payload;
}

/* -- the sequence ------------------------------------------------------------------------------------------------- */

static Py_ssize_t length(PyObject *self)
{
    return payloads_of(self)->count;
}

static PyObject *item(PyObject *self, Py_ssize_t at)
{
    const struct payloads_object *payloads = payloads_of(self);
    if (at < 0 || at >= payloads->count)
        return PyErr_Format(PyExc_IndexError, "payload %zd of %zd", at, payloads->count);
    struct kvr_payload payload = payload_at(payloads, at);
    return PyBytes_FromStringAndSize((const char *)payload.data, (Py_ssize_t)payload.size);
}

/* A slice is a list. */
static PyObject *slice(PyObject *self, PyObject *key)
{
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(key, &start, &stop, &step))
        return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(payloads_of(self)->count, &start, &stop, step);
    PyObject *list = PyList_New(count);
    for (Py_ssize_t at = 0; list != NULL && at < count; at++) {
        PyObject *payload = item(self, start + at * step);
        if (payload == NULL || PyList_SetItem(list, at, payload)) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *subscript(PyObject *self, PyObject *key)
{
    if (PySlice_Check(key))
        return slice(self, key);
    if (!PyLong_Check(key))
        return PyErr_Format(PyExc_TypeError, "payloads have integers and slices as places");
    Py_ssize_t at = PyLong_AsSsize_t(key);
    if (at == -1 && PyErr_Occurred())
        return NULL;
    return item(self, at < 0 ? at + payloads_of(self)->count : at);
}

static void dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyMem_Free(payloads_of(self)->ends);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* -- for the core ------------------------------------------------------------------------------------------------- */

PyObject *kvr_payloads_make(PyObject *module, const struct kvr_payload *parts, Py_ssize_t count)
{
    size_t size = 0;
    for (Py_ssize_t at = 0; at < count; at++)
        size += parts[at].size;
    PyObject *type = PyObject_GetAttrString(module, "Payloads");
    if (type == NULL)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)(void *)type, Py_tp_alloc);
    PyObject *self = allocate((PyTypeObject *)(void *)type, 0);
    Py_DECREF(type);
    if (self == NULL)
        return NULL;
    struct payloads_object *payloads = payloads_of(self);
    payloads->ends = PyMem_Malloc((size_t)count * sizeof *payloads->ends + size);
    if (payloads->ends == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    payloads->count = count;
    payloads->data = (uint8_t *)(payloads->ends + count);
    size_t end = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        memcpy(payloads->data + end, parts[at].data, parts[at].size);
        payloads->ends[at] = end += parts[at].size;
    }
    return self;
}

/* No other type has this function, and none can be derived from this one. */
int kvr_are_payloads(PyObject *object)
{
    return PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)dealloc;
}

Py_ssize_t kvr_payloads_count(PyObject *payloads)
{
    return kvr_are_payloads(payloads) ? payloads_of(payloads)->count : PyList_Size(payloads);
}

int kvr_payload_open(PyObject *payloads, Py_ssize_t at, Py_buffer *view, struct kvr_payload *payload)
{
    view->obj = NULL;
    if (kvr_are_payloads(payloads)) {
        *payload = payload_at(payloads_of(payloads), at);
        return 0;
    }
    PyObject *bytes = PyList_GetItem(payloads, at);
    if (bytes == NULL || PyObject_GetBuffer(bytes, view, PyBUF_SIMPLE))
        return -1;
    payload->data = view->buf;
    payload->size = (size_t)view->len;
    return 0;
}

void kvr_payload_close(Py_buffer *view)
{
    if (view->obj != NULL)
        PyBuffer_Release(view);
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static PyObject *new(PyTypeObject *type, PyObject *arguments, PyObject *names)
{
    (void)type;
    (void)arguments;
    (void)names;
    return PyErr_Format(PyExc_TypeError, "payloads come out of what a connection brings");
}

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)"Batches that came in a row."},
    {Py_tp_new, (void *)new},
    {Py_tp_dealloc, (void *)dealloc},
    {Py_sq_length, (void *)length},
    {Py_sq_item, (void *)item},
    {Py_mp_length, (void *)length},
    {Py_mp_subscript, (void *)subscript},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvrouter._native.Payloads",
    .basicsize = sizeof(struct payloads_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int kvr_add_payloads_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Payloads", type);
    Py_DECREF(type);
    return failed;
}
