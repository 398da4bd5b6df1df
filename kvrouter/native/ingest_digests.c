/* Digests of the batches of a run: what `kvrouter/ingest/fingerprints.py` notes of each, noted of all at once. */
#include "hashing.h"
#include "module.h"
#include "payloads.h"
#include "xxh3.h"

/* Write the digests of payloads into an array of 64-bit words, which begins anew at its end. */
static int note_each(uint64_t *digests, Py_ssize_t size, Py_ssize_t position, PyObject *payloads, uint64_t least)
{
    Py_ssize_t count = kvr_payloads_count(payloads);
    for (Py_ssize_t at = 0; at < count; at++) {
        struct kvr_payload payload;
        Py_buffer view;
        if (kvr_payload_open(payloads, at, &view, &payload))
            return -1;
        uint64_t digest = kvr_xxh3_64(payload.data, payload.size, 0);
        kvr_payload_close(&view);
        digests[position] = digest < least ? least : digest;
        position = position + 1 == size ? 0 : position + 1;
    }
    return 0;
}

static PyObject *note_digests(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer digests;
    uint64_t least;
    if (given != 4 || (!PyList_Check(arguments[2]) && !kvr_are_payloads(arguments[2])))
        return PyErr_Format(PyExc_TypeError, "note_digests takes an array, a position, payloads and the least digest");
    Py_ssize_t position = PyLong_AsSsize_t(arguments[1]);
    if (PyErr_Occurred() || kvr_read_uint64(arguments[3], &least))
        return NULL;
    if (PyObject_GetBuffer(arguments[0], &digests, PyBUF_WRITABLE))
        return NULL;
    Py_ssize_t size = digests.len / (Py_ssize_t)sizeof(uint64_t);
    int failed = position < 0 || position >= size;
    if (failed)
        PyErr_Format(PyExc_ValueError, "position %zd of %zd", position, size);
    else
        failed = note_each(digests.buf, size, position, arguments[2], least);
    PyBuffer_Release(&digests);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"note_digests", (PyCFunction)(void (*)(void))note_digests, METH_FASTCALL,
     "note_digests(digests, start, payloads, least)"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_ingest_digests(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
