/* Whole chunks of the chunked transfer coding: the simple cases of what `kvrouter/service/proxy/chunked.py` specifies.
 *
 * It steps over chunks and judges nothing: at the first thing that is not plainly a whole chunk it stops, and the
 * Python code decides what that is.
 */
#include "module.h"
#include "memory.h"

#define SIZE_DIGITS_MAX 15

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* Where the chunk at `at` ends; NULL where it is not whole, not simple, or the last one. */
static const char *skip_chunk(const char *at, const char *end)
{
    int64_t size = 0;
    const char *first = at;
    for (int digit; at < end && at - first < SIZE_DIGITS_MAX && (digit = hex_value(*at)) >= 0; at++)
        size = size << 4 | digit;
    if (at == first || size == 0 || end - at < 4 || at[0] != '\r' || at[1] != '\n' || end - at - 4 < size)
        return NULL;
    at += 2 + size;
    return at[0] == '\r' && at[1] == '\n' ? at + 2 : NULL;
}

static PyObject *skip_chunks(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer data;
    if (given != 2)
        return PyErr_Format(PyExc_TypeError, "skip_chunks takes 2 arguments, not %zd", given);
    Py_ssize_t start = PyLong_AsSsize_t(arguments[1]);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(arguments[0], &data, PyBUF_SIMPLE))
        return NULL;
    if (start < 0 || start > data.len) {
        PyErr_Format(PyExc_ValueError, "start is %zd of %zd bytes", start, data.len);
        PyBuffer_Release(&data);
        return NULL;
    }
    const char *begin = data.buf, *end = begin + data.len, *at = begin + start;
    for (const char *next; (next = skip_chunk(at, end)) != NULL;)
        at = next;
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(at - begin);
}

static PyMethodDef functions[] = {
    {"skip_chunks", (PyCFunction)(void (*)(void))skip_chunks, METH_FASTCALL, "skip_chunks(data, start) -> position"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_http_chunks(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
