/* JSON arrays of hashes, signed or unsigned integers of 64 bits, to one row of numbers without a Python integer of each.
 *
 * As with token ids, what is not such an array is given back unread, and the general reader says what is the matter.
 */
#include "json_digits.h"
#include "module.h"

#define DIGITS_MAX 20

static const uint8_t *skip_space(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        at++;
    return at;
}

/* Where the number that begins at `at` ends; NULL where it is no integer of 64 bits, signed or not. */
static const uint8_t *read_hash(const uint8_t *at, const uint8_t *end, uint64_t *hash)
{
    int is_negative = at < end && *at == '-';
    const uint8_t *first = at += is_negative;
    uint64_t value = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');
        /* Only the last of twenty digits can be too much. */
        if (at - first >= DIGITS_MAX - 1 &&
            (at - first >= DIGITS_MAX || value > UINT64_MAX / 10 || 10 * value > UINT64_MAX - digit))
            return NULL;
        value = 10 * value + digit;
    }
    if (at == first || (*first == '0' && at > first + 1) || (is_negative && value > (uint64_t)1 << 63))
        return NULL;
    *hash = is_negative ? 0 - value : value;
    return at;
}

/* Read `count` numbers with commas between them, and nothing else. */
static int read_hashes(const struct kvr_digits *text, size_t count, char *out)
{
    const uint8_t *at = text->at, *end = text->close;
    for (size_t number = 0; number < count; number++, out += sizeof(uint64_t)) {
        uint64_t hash;
        if (number > 0 && *at++ != ',') /* There are so many commas, so this is not the end. */
            return -1;
        at = read_hash(skip_space(at, end), end, &hash);
        if (at == NULL)
            return -1;
        memcpy(out, &hash, sizeof hash);
        at = skip_space(at, end);
        if (at == end && number + 1 < count)
            return -1;
    }
    return at == end ? 0 : -1;
}

/* The hashes as bytes; NULL without an exception where the text is something else. */
static PyObject *hashes_of(const struct kvr_digits *text)
{
    if (kvr_digits_none(text))
        return PyBytes_FromStringAndSize("", 0);
    size_t count = kvr_digits_count(text);
    if (2 * count > (size_t)(text->close - text->at) + 1)
        return NULL; /* Too many commas for one digit each: not worth the memory. */
    PyObject *hashes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof(uint64_t) * count));
    if (hashes != NULL && read_hashes(text, count, PyBytes_AsString(hashes))) {
        Py_DECREF(hashes);
        return NULL;
    }
    return hashes;
}

static PyObject *find(const Py_buffer *text, const Py_buffer *key)
{
    const uint8_t *begin = text->buf;
    Py_ssize_t start = kvr_find_value(text, key);
    if (start >= text->len || begin[start] != '[')
        Py_RETURN_NONE;
    struct kvr_digits inside = {.begin = begin, .at = begin + start + 1};
    inside.close = memchr(inside.at, ']', (size_t)(text->len - start - 1));
    PyObject *hashes = inside.close != NULL ? hashes_of(&inside) : NULL;
    if (hashes == NULL && PyErr_Occurred())
        return NULL;
    if (hashes == NULL)
        Py_RETURN_NONE;
    PyObject *result = Py_BuildValue("Onn", hashes, start, inside.close + 1 - begin);
    Py_DECREF(hashes);
    return result;
}

/* find_hash_array(text, key) -> hashes, where the array begins and where it ends, or None */
static PyObject *find_hash_array(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer text, key;
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "find_hash_array takes 2 arguments, not %zd", given);
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &text, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = NULL;
    if (PyObject_GetBuffer(arguments[1], &key, PyBUF_SIMPLE) == 0) {
        result = find(&text, &key);
        PyBuffer_Release(&key);
    }
    PyBuffer_Release(&text);
    return result;
}

static PyMethodDef functions[] = {
    {"find_hash_array", (PyCFunction)(void (*)(void))find_hash_array, METH_FASTCALL,
     "find_hash_array(text, key) -> (hashes, start, end) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_json_hashes(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
