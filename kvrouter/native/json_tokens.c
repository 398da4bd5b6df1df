/* JSON arrays of token ids to token words, without a Python integer in between.
 *
 * Only what every reader of JSON takes for token ids is read here: plain integers 0..2^32-1, commas, white space.
 * Anything else, right or wrong, is given back unread, and the caller's general reader says what is the matter: so
 * there is one place that words errors, and it is not this one.
 */
#include "module.h"
#include "memory.h"

/* A slice of text that holds a `]`, at which every loop below comes to a stop; `end` is the end of the whole text. */
struct text {
    const uint8_t *at;
    const uint8_t *close;
    const uint8_t *end;
};

#define EACH(byte) (0x0101010101010101u * (byte))

KVR_INLINE const uint8_t *skip_space(const uint8_t *at)
{
    while (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')
        at++;
    return at;
}

/* Where the digits from `at` end; NULL where they are no token id. */
static const uint8_t *read_slowly(const uint8_t *at, uint32_t *token)
{
    const uint8_t *first = at;
    uint64_t value = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        value = 10 * value + (uint64_t)(*at - '0');
        if (value > UINT32_MAX)
            return NULL;
    }
    if (at == first || (*first == '0' && at > first + 1))
        return NULL;
    *token = (uint32_t)value;
    return at;
}

/* As above, eight characters at a time: find the first that is no digit, shift it out, and add up the digits in pairs,
 * then fours, then all (D. Lemire, "Quickly parsing eight digits"). Needs eight characters to be there. */
KVR_INLINE const uint8_t *read_fast(const uint8_t *at, uint32_t *token)
{
    uint64_t digits = kvr_load64(at);
    uint64_t others = ((digits + EACH(0x46)) | (digits - EACH(0x30))) & EACH(0x80);
    if (others == 0)
        return read_slowly(at, token);
    int bits = kvr_lowest_bit(others) & ~7;
    if (bits == 0 || (*at == '0' && bits > 8))
        return NULL;
    digits = digits << (64 - bits) & EACH(0x0F);
    digits = digits * (10 << 8 | 1) >> 8 & 0x00FF00FF00FF00FFu;
    digits = digits * (100 << 16 | 1) >> 16 & 0x0000FFFF0000FFFFu;
    *token = (uint32_t)(digits * ((uint64_t)10000 << 32 | 1) >> 32);
    return at + bits / 8;
}

/* Read "1, 2, 3]" to words, of which there is room for `room`. Return how many, or -1. */
static Py_ssize_t read_tokens(struct text text, uint8_t *words, Py_ssize_t room)
{
    const uint8_t *at = skip_space(text.at), *fast_until = text.end - 8;
    for (Py_ssize_t count = 0; count < room; count++) {
        uint32_t token;
        at = at <= fast_until ? read_fast(at, &token) : read_slowly(at, &token);
        if (at == NULL)
            return -1;
        kvr_store32(words + 4 * count, token);
        if (*at != ',') {
            at = skip_space(at);
            if (at == text.close)
                return count + 1;
            if (*at != ',')
                return -1;
        }
        at = skip_space(at + 1);
    }
    return -1;
}

static Py_ssize_t count_commas(const uint8_t *at, const uint8_t *end)
{
    Py_ssize_t count = 0;
    /* A byte holds the sum of so few that the compiler can add sixteen of them at a time. */
    for (; end - at >= 128; at += 128) {
        uint8_t some = 0;
        for (int i = 0; i < 128; i++)
            some += at[i] == ',';
        count += some;
    }
    for (; at < end; at++)
        count += *at == ',';
    return count;
}

/* The words as bytes; NULL without an exception where the text is no array of token ids. */
static PyObject *words_of(struct text text, int may_unlock)
{
    if (skip_space(text.at) == text.close)
        return PyBytes_FromStringAndSize("", 0);
    Py_ssize_t length = text.close - text.at, count = count_commas(text.at, text.close) + 1;
    if (2 * count > length + 1)
        return NULL; /* Too many commas for one digit each: not worth the memory. */
    PyObject *words = PyBytes_FromStringAndSize(NULL, 4 * count);
    if (words == NULL)
        return NULL;
    uint8_t *out = (uint8_t *)PyBytes_AsString(words);
    PyThreadState *released = may_unlock && length >= KVR_PARSE_UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
    Py_ssize_t found = read_tokens(text, out, count);
    if (released != NULL)
        PyEval_RestoreThread(released);
    if (found == count)
        return words;
    Py_DECREF(words);
    return NULL;
}

static PyObject *parse(const Py_buffer *buffer, Py_ssize_t start, int may_unlock)
{
    const uint8_t *begin = buffer->buf;
    struct text text = {.end = begin + buffer->len};
    if (start >= buffer->len || begin[start] != '[')
        Py_RETURN_NONE;
    text.at = begin + start + 1;
    text.close = memchr(text.at, ']', (size_t)(text.end - text.at));
    if (text.close == NULL)
        Py_RETURN_NONE;
    PyObject *words = words_of(text, may_unlock);
    if (words == NULL && PyErr_Occurred())
        return NULL;
    if (words == NULL)
        Py_RETURN_NONE;
    PyObject *end = PyLong_FromSsize_t(text.close + 1 - begin);
    PyObject *result = end == NULL ? NULL : PyTuple_Pack(2, words, end);
    Py_DECREF(words);
    Py_XDECREF(end);
    return result;
}

static PyObject *parse_token_array(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer buffer;
    if (given != 2) {
        PyErr_Format(PyExc_TypeError, "parse_token_array takes 2 arguments, not %zd", given);
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(arguments[1]);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    if (start < 0) {
        PyErr_Format(PyExc_ValueError, "start is %zd; it must not be negative", start);
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &buffer, PyBUF_SIMPLE))
        return NULL;
    /* Other threads could change anything but bytes meanwhile, and take away the bracket that stops us. */
    PyObject *result = parse(&buffer, start, PyBytes_Check(arguments[0]));
    PyBuffer_Release(&buffer);
    return result;
}

static PyMethodDef functions[] = {
    {"parse_token_array", (PyCFunction)(void (*)(void))parse_token_array, METH_FASTCALL,
     "parse_token_array(text, start) -> (words, end) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_json_tokens(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
