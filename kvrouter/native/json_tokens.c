/* JSON arrays of token ids to token words, without a Python integer in between.
 *
 * Only what every reader of JSON takes for token ids is read here: plain integers 0..2^32-1, commas, white space.
 * Anything else, right or wrong, is given back unread, and the caller's general reader says what is the matter: so
 * there is one place that words errors, and it is not this one.
 */
#include "module.h"
#include "json_digits.h"

static const uint8_t *skip_space_until(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        at++;
    return at;
}

PyObject *kvr_digits_words(const struct kvr_digits *digits, int may_unlock)
{
    if (kvr_digits_none(digits))
        return PyBytes_FromStringAndSize("", 0);
    size_t length = (size_t)(digits->close - digits->at), count = kvr_digits_count(digits);
    if (2 * count > length + 1)
        return NULL; /* Too many commas for one digit each: not worth the memory. */
    PyObject *words = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(4 * count));
    if (words == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AsString(words);
    PyThreadState *released = may_unlock && length >= KVR_PARSE_UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
    int failed = kvr_digits_read(digits, count, out);
    if (released != NULL)
        PyEval_RestoreThread(released);
    if (!failed)
        return words;
    Py_DECREF(words);
    return NULL;
}

/* Read the array that begins at `start`, if one does. The result ends with where it ends; `with_start` adds where it
 * begins. */
static PyObject *parse(const Py_buffer *buffer, Py_ssize_t start, int with_start, int may_unlock)
{
    const uint8_t *begin = buffer->buf;
    if (start >= buffer->len || begin[start] != '[')
        Py_RETURN_NONE;
    struct kvr_digits digits = {.begin = begin, .at = begin + start + 1};
    digits.close = memchr(digits.at, ']', (size_t)(buffer->len - start - 1));
    if (digits.close == NULL)
        Py_RETURN_NONE;
    PyObject *words = kvr_digits_words(&digits, may_unlock);
    if (words == NULL && PyErr_Occurred())
        return NULL;
    if (words == NULL)
        Py_RETURN_NONE;
    Py_ssize_t end = digits.close + 1 - begin;
    PyObject *result = with_start ? Py_BuildValue("Onn", words, start, end) : Py_BuildValue("On", words, end);
    Py_DECREF(words);
    return result;
}

Py_ssize_t kvr_find_value(const Py_buffer *text, const Py_buffer *key)
{
    const uint8_t *begin = text->buf, *end = begin + text->len, *at = begin;
    while (key->len > 0 && end - at >= key->len) {
        at = memchr(at, *(const uint8_t *)key->buf, (size_t)(end - at - key->len + 1));
        if (at == NULL)
            break;
        if (memcmp(at, key->buf, (size_t)key->len) != 0) {
            at++;
            continue;
        }
        at = skip_space_until(at + key->len, end);
        if (at == end || *at != ':')
            break;
        return skip_space_until(at + 1, end) - begin;
    }
    return text->len;
}

/* -- functions ---------------------------------------------------------------------------------------------------- */

static int check_count(const char *name, Py_ssize_t given)
{
    if (given == 2)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes 2 arguments, not %zd", name, given);
    return -1;
}

static PyObject *parse_token_array(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer text;
    if (check_count("parse_token_array", given))
        return NULL;
    Py_ssize_t start = PyLong_AsSsize_t(arguments[1]);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    if (start < 0) {
        PyErr_Format(PyExc_ValueError, "start is %zd; it must not be negative", start);
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &text, PyBUF_SIMPLE))
        return NULL;
    /* Other threads could change anything but bytes meanwhile, and take away the bracket that stops us. */
    PyObject *result = parse(&text, start, 0, PyBytes_Check(arguments[0]));
    PyBuffer_Release(&text);
    return result;
}

static PyObject *find_token_array(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer text, key;
    if (check_count("find_token_array", given) || PyObject_GetBuffer(arguments[0], &text, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = NULL;
    if (PyObject_GetBuffer(arguments[1], &key, PyBUF_SIMPLE) == 0) {
        result = parse(&text, kvr_find_value(&text, &key), 1, PyBytes_Check(arguments[0]));
        PyBuffer_Release(&key);
    }
    PyBuffer_Release(&text);
    return result;
}

#define FAST(function) #function, (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef functions[] = {
    {FAST(parse_token_array), "parse_token_array(text, start) -> (words, end) or None"},
    {FAST(find_token_array), "find_token_array(text, key) -> (words, start, end) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_json_tokens(PyObject *module)
{
    kvr_digits_choose();
    return PyModule_AddFunctions(module, functions);
}
