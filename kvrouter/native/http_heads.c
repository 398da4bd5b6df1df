/* Heads that were seen before: what `kvrouter/service/proxy/head_memory.py` specifies, in one pass over the bytes.
 *
 * Nothing is judged here. A head that differs from every remembered one in more than the number of a plain
 * Content-Length is not found, and the Python code reads it.
 */
#include "module.h"
#include "memory.h"

#define LENGTH_DIGITS_MAX 18

struct head {
    const char *begin;
    const char *end;
    /* The first plain Content-Length line with the CRLF before it; NULL where there is none. */
    const char *length_begin;
    const char *length_end;
    long long length;
};

static int is_blank(char byte)
{
    return byte == ' ' || byte == '\t';
}

/* Read `Content-Length: 5` from `at` to `end`; -1 where the line says something else. */
static long long read_length(const char *at, const char *end)
{
    static const char name[] = "ontent-ength:";
    if (end - at < 16 || (*at != 'C' && *at != 'c') || memcmp(at + 1, name, 7) != 0 ||
        (at[8] != 'L' && at[8] != 'l') || memcmp(at + 9, name + 7, 6) != 0)
        return -1;
    for (at += 15; at < end && is_blank(*at);)
        at++;
    const char *first = at;
    long long value = 0;
    while (at < end && at - first < LENGTH_DIGITS_MAX && *at >= '0' && *at <= '9')
        value = 10 * value + (*at++ - '0');
    if (at == first)
        return -1;
    while (at < end && is_blank(*at))
        at++;
    return at == end ? value : -1;
}

/* Find the empty line that ends the head, and its length; 0 where it is not within `limit` bytes. */
static int scan(struct head *head, const char *limit)
{
    const char *line = head->begin;
    head->length_begin = head->length_end = NULL;
    head->length = -1;
    for (const char *at = line; (at = memchr(at, '\r', (size_t)(limit - at))) != NULL; at++) {
        if (limit - at < 4)
            return 0;
        if (at[1] != '\n')
            continue;
        if (head->length < 0 && line > head->begin) {
            head->length = read_length(line, at);
            if (head->length >= 0) {
                head->length_begin = line - 2;
                head->length_end = at;
            }
        }
        if (at[2] == '\r' && at[3] == '\n') {
            head->end = at;
            return 1;
        }
        line = at + 2;
    }
    return 0;
}

/* The bytes of a head without its length, which are its key. */
static PyObject *key_of(const struct head *head)
{
    if (head->length_begin == NULL)
        return PyBytes_FromStringAndSize(head->begin, head->end - head->begin);
    size_t before = (size_t)(head->length_begin - head->begin), after = (size_t)(head->end - head->length_end);
    PyObject *key = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(before + after));
    if (key != NULL) {
        char *out = PyBytes_AsString(key);
        memcpy(out, head->begin, before);
        memcpy(out + before, head->length_end, after);
    }
    return key;
}

/* The remembered head that the memory begins with, borrowed; NULL, perhaps with an exception, where there is none. */
static PyObject *recall(struct head *head, const Py_buffer *data, Py_ssize_t size, PyObject *heads)
{
    head->begin = data->buf;
    if (size < 0 || size > data->len || !scan(head, head->begin + size))
        return NULL;
    PyObject *key = key_of(head);
    PyObject *known = key == NULL ? NULL : PyDict_GetItemWithError(heads, key);
    Py_XDECREF(key);
    return known;
}

/* Take (data, size, known) apart; -1 with an exception. The buffer is the caller's to release. */
static int read_arguments(const char *name, PyObject *const *arguments, Py_ssize_t given, Py_buffer *data,
                          Py_ssize_t *size)
{
    if (given != 3) {
        PyErr_Format(PyExc_TypeError, "%s takes 3 arguments, not %zd", name, given);
        return -1;
    }
    *size = PyLong_AsSsize_t(arguments[1]);
    if (*size == -1 && PyErr_Occurred())
        return -1;
    return PyObject_GetBuffer(arguments[0], data, PyBUF_SIMPLE);
}

static PyObject *recall_head(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer data;
    Py_ssize_t size;
    if (read_arguments("recall_head", arguments, given, &data, &size))
        return NULL;
    struct head head;
    PyObject *known = recall(&head, &data, size, arguments[2]), *result = NULL;
    if (known != NULL)
        result = Py_BuildValue("OLn", known, head.length, head.end + 4 - head.begin);
    else if (!PyErr_Occurred())
        result = Py_NewRef(Py_None);
    PyBuffer_Release(&data);
    return result;
}

/* As above for a head and a body that are all there is, and give the body too. */
static PyObject *recall_whole(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer data;
    Py_ssize_t size;
    if (read_arguments("recall_whole", arguments, given, &data, &size))
        return NULL;
    struct head head;
    PyObject *known = recall(&head, &data, size, arguments[2]), *result = NULL;
    Py_ssize_t rest = known == NULL ? 0 : size - (head.end + 4 - head.begin);
    if (known != NULL && rest == (head.length < 0 ? 0 : head.length))
        result = Py_BuildValue("OLy#", known, head.length, head.end + 4, rest);
    else if (!PyErr_Occurred())
        result = Py_NewRef(Py_None);
    PyBuffer_Release(&data);
    return result;
}

#define FAST(function) #function, (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef functions[] = {
    {FAST(recall_head), "recall_head(data, size, known) -> (head, length, end) or None"},
    {FAST(recall_whole), "recall_whole(data, size, known) -> (head, length, body) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_http_heads(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
