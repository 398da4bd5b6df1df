/* Python integers to token words. */
#include "module.h"
#include "memory.h"

static int read_token(PyObject *object, uint32_t *token)
{
    unsigned long value;
    if (PyLong_CheckExact(object)) {
        value = PyLong_AsUnsignedLong(object);
    } else {
        /* May run any code, also such that changes the list: the caller looks at it anew for every item. */
        PyObject *integer = PyNumber_Index(object);
        if (integer == NULL)
            return -1;
        value = PyLong_AsUnsignedLong(integer);
        Py_DECREF(integer);
    }
    if (value == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a token id is above 2^32-1");
        return -1;
    }
    *token = (uint32_t)value;
    return 0;
}

static PyObject *tokens_to_words(PyObject *module, PyObject *tokens)
{
    (void)module;
    if (!PyList_Check(tokens)) {
        PyErr_SetString(PyExc_TypeError, "tokens_to_words takes a list");
        return NULL;
    }
    Py_ssize_t count = PyList_Size(tokens);
    PyObject *words = PyBytes_FromStringAndSize(NULL, 4 * count);
    if (words == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AsString(words);
    for (Py_ssize_t position = 0; position < count; position++) {
        uint32_t token;
        PyObject *item = PyList_GetItem(tokens, position); /* Checks the bounds. */
        if (item == NULL)
            goto failed;
        Py_INCREF(item);
        int wrong = read_token(item, &token);
        Py_DECREF(item);
        if (wrong)
            goto failed;
        kvr_store32(out + 4 * position, token);
    }
    return words;
failed:
    Py_DECREF(words);
    return NULL;
}

static PyMethodDef functions[] = {
    {"tokens_to_words", tokens_to_words, METH_O, "tokens_to_words(list of token ids) -> words"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_token_list(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
