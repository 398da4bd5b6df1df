/* Python integers to token words. */
#include "module.h"
#include "memory.h"

static int check_token(unsigned long value, uint32_t *token)
{
    if (value == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a token id is above 2^32-1");
        return -1;
    }
    *token = (uint32_t)value;
    return 0;
}

/* For whatever can become an integer. This may run any code, also such that changes the list: the item is ours
 * meanwhile, and the list is looked at anew for the next one. */
static int read_any(PyObject *item, uint32_t *token)
{
    Py_INCREF(item);
    PyObject *integer = PyNumber_Index(item);
    Py_DECREF(item);
    if (integer == NULL)
        return -1;
    unsigned long value = PyLong_AsUnsignedLong(integer);
    Py_DECREF(integer);
    return check_token(value, token);
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
        if (PyLong_CheckExact(item) ? check_token(PyLong_AsUnsignedLong(item), &token) : read_any(item, &token))
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
