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
    while (*at <= ' ' && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
        at++;
    return at;
}

static const uint8_t *skip_space_until(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r'))
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

/* Where a number begins is known when the one before it is read, and waiting for that takes longer than the work: so
 * four readers take turns, each in a part of the array of its own. `at` is a bracket or comma, after which `count`
 * numbers follow, the last one up to `stop`. */
#define LANES 4

struct lane {
    const uint8_t *at;
    const uint8_t *stop;
    uint8_t *words;
    Py_ssize_t count;
};

KVR_INLINE int read_one(struct lane *lane, const struct text *text)
{
    uint32_t token;
    const uint8_t *at = skip_space(lane->at + 1);
    at = text->end - at >= 8 ? read_fast(at, &token) : read_slowly(at, &token);
    if (at == NULL)
        return 0;
    kvr_store32(lane->words, token);
    lane->words += 4;
    lane->at = at = skip_space(at);
    return *at == ',' || at == text->close;
}

static int read_tokens(struct lane lanes[LANES], const struct text *text)
{
    Py_ssize_t together = lanes[0].count;
    for (int i = 1; i < LANES; i++)
        together = lanes[i].count < together ? lanes[i].count : together;
    for (Py_ssize_t turn = 0; turn < together; turn++)
        if (!read_one(&lanes[0], text) || !read_one(&lanes[1], text) || !read_one(&lanes[2], text) ||
            !read_one(&lanes[3], text))
            return 0;
    for (int i = 0; i < LANES; i++) {
        for (Py_ssize_t turn = together; turn < lanes[i].count; turn++)
            if (!read_one(&lanes[i], text))
                return 0;
        if (lanes[i].at != lanes[i].stop)
            return 0;
    }
    return 1;
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

/* Part the array at the commas nearest to its quarters; the later lanes of a short one stay empty. Return how many
 * numbers there should be: one more than commas. */
static Py_ssize_t part(const struct text *text, struct lane lanes[LANES])
{
    const uint8_t *at = text->at - 1;
    Py_ssize_t quarter = (text->close - text->at) / LANES, total = 0;
    for (int i = 0; i < LANES; i++) {
        Py_ssize_t left = text->close - at - 1;
        const uint8_t *stop = NULL;
        if (i < LANES - 1 && quarter < left)
            stop = memchr(at + 1 + quarter, ',', (size_t)(left - quarter));
        lanes[i].at = at;
        lanes[i].stop = stop == NULL ? text->close : stop;
        lanes[i].count = at == text->close ? 0 : count_commas(at + 1, lanes[i].stop) + 1;
        total += lanes[i].count;
        at = lanes[i].stop;
    }
    return total;
}

/* The words as bytes; NULL without an exception where the text is no array of token ids. */
static PyObject *words_of(const struct text *text, int may_unlock)
{
    if (skip_space(text->at) == text->close)
        return PyBytes_FromStringAndSize("", 0);
    struct lane lanes[LANES];
    Py_ssize_t length = text->close - text->at, count = part(text, lanes);
    if (2 * count > length + 1)
        return NULL; /* Too many commas for one digit each: not worth the memory. */
    PyObject *words = PyBytes_FromStringAndSize(NULL, 4 * count);
    if (words == NULL)
        return NULL;
    lanes[0].words = (uint8_t *)PyBytes_AsString(words);
    for (int i = 1; i < LANES; i++)
        lanes[i].words = lanes[i - 1].words + 4 * lanes[i - 1].count;
    PyThreadState *released = may_unlock && length >= KVR_PARSE_UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
    int good = read_tokens(lanes, text);
    if (released != NULL)
        PyEval_RestoreThread(released);
    if (good)
        return words;
    Py_DECREF(words);
    return NULL;
}

/* Read the array that begins at `start`, if one does. The result ends with where it ends; `with_start` adds where it
 * begins. */
static PyObject *parse(const Py_buffer *buffer, Py_ssize_t start, int with_start, int may_unlock)
{
    const uint8_t *begin = buffer->buf;
    struct text text = {.end = begin + buffer->len};
    if (start >= buffer->len || begin[start] != '[')
        Py_RETURN_NONE;
    text.at = begin + start + 1;
    text.close = memchr(text.at, ']', (size_t)(text.end - text.at));
    if (text.close == NULL)
        Py_RETURN_NONE;
    PyObject *words = words_of(&text, may_unlock);
    if (words == NULL && PyErr_Occurred())
        return NULL;
    if (words == NULL)
        Py_RETURN_NONE;
    Py_ssize_t end = text.close + 1 - begin;
    PyObject *result = with_start ? Py_BuildValue("Onn", words, start, end) : Py_BuildValue("On", words, end);
    Py_DECREF(words);
    return result;
}

/* Where the value of the first `key` with a colon after it begins; the end of the text where there is none. `key` is as
 * it stands in the text, with its quotes. Whether it is the key that was meant, or part of a text or of an inner
 * object, is not looked at. */
static Py_ssize_t find_value(const Py_buffer *text, const Py_buffer *key)
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
        result = parse(&text, find_value(&text, &key), 1, PyBytes_Check(arguments[0]));
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
    return PyModule_AddFunctions(module, functions);
}
