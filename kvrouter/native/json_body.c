/* Bodies of requests whose prompt is an array of token ids, read in one go where they have the usual form: an object
 * with the prompt, and beside it fields that the router knows, or such that need no reading.
 *
 * What has any other form, right or wrong, is given back unread: texts with escapes or beyond ASCII, a field twice, a
 * field of another type, numbers of unusual size, deep nesting, errors. The caller's general reader reads that, and is
 * the specification: what is read here, it reads the same.
 */
#include "json_digits.h"
#include "module.h"

#define DEPTH_MAX 16
#define NUMBER_CHARACTERS_MAX 24
#define WHOLE_DIGITS_MAX 15

struct body {
    const uint8_t *begin, *at, *end;
    struct kvr_digits prompt; /* `at` is NULL before it was found */
    const uint8_t *model, *model_end;
    int stream;               /* -1: not given */
    long long max_tokens;     /* -1: not given */
};

/* A text as it stands between its quotes. */
struct name {
    const uint8_t *at;
    size_t length;
};

static int is_name(const struct name *name, const char *text, size_t length)
{
    return name->length == length && memcmp(name->at, text, length) == 0;
}

#define IS_NAME(name, text) is_name(name, text, sizeof(text) - 1)

/* -- parts of JSON: each begins at `at` and leaves it behind what it took; 0, or -1 where it is not plain ------------ */

static void skip_space(struct body *body)
{
    while (body->at < body->end &&
           (*body->at == ' ' || *body->at == '\n' || *body->at == '\t' || *body->at == '\r'))
        body->at++;
}

static int take(struct body *body, uint8_t character)
{
    if (body->at == body->end || *body->at != character)
        return -1;
    body->at++;
    return 0;
}

static int take_text(struct body *body, struct name *text)
{
    if (take(body, '"'))
        return -1;
    text->at = body->at;
    for (; body->at < body->end && *body->at != '"'; body->at++)
        if (*body->at < 0x20 || *body->at > 0x7E || *body->at == '\\')
            return -1;
    text->length = (size_t)(body->at - text->at);
    return take(body, '"');
}

static int take_word(struct body *body, const char *word, size_t length)
{
    if ((size_t)(body->end - body->at) < length || memcmp(body->at, word, length) != 0)
        return -1;
    body->at += length;
    return 0;
}

#define TAKE_WORD(body, word) take_word(body, word, sizeof(word) - 1)

static size_t take_digits(struct body *body)
{
    const uint8_t *first = body->at;
    while (body->at < body->end && *body->at >= '0' && *body->at <= '9')
        body->at++;
    return (size_t)(body->at - first);
}

/* A number of any kind, with an exponent of at most two digits. */
static int take_number(struct body *body)
{
    const uint8_t *first = body->at;
    (void)take(body, '-');
    const uint8_t *digits = body->at;
    size_t count = take_digits(body);
    if (count == 0 || (*digits == '0' && count > 1))
        return -1;
    if (take(body, '.') == 0 && take_digits(body) == 0)
        return -1;
    if (body->at < body->end && (*body->at == 'e' || *body->at == 'E')) {
        body->at++;
        if (take(body, '-') != 0)
            (void)take(body, '+');
        count = take_digits(body);
        if (count == 0 || count > 2)
            return -1;
    }
    return body->at - first > NUMBER_CHARACTERS_MAX ? -1 : 0;
}

static int take_anything(struct body *body, int depth);

/* What stands between brackets: values, or names and values. */
static int take_many(struct body *body, uint8_t close, int depth)
{
    struct name name;
    body->at++;
    skip_space(body);
    if (take(body, close) == 0)
        return 0;
    for (;;) {
        skip_space(body);
        if (close == '}') {
            if (take_text(body, &name))
                return -1;
            skip_space(body);
            if (take(body, ':'))
                return -1;
            skip_space(body);
        }
        if (take_anything(body, depth + 1))
            return -1;
        skip_space(body);
        if (take(body, ',') != 0)
            return take(body, close);
    }
}

static int take_anything(struct body *body, int depth)
{
    struct name text;
    if (body->at == body->end || depth > DEPTH_MAX)
        return -1;
    switch (*body->at) {
    case '"':
        return take_text(body, &text);
    case '{':
        return take_many(body, '}', depth);
    case '[':
        return take_many(body, ']', depth);
    case 't':
        return TAKE_WORD(body, "true");
    case 'f':
        return TAKE_WORD(body, "false");
    case 'n':
        return TAKE_WORD(body, "null");
    default:
        return take_number(body);
    }
}

/* -- fields ------------------------------------------------------------------------------------------------------- */

static int take_prompt(struct body *body)
{
    if (body->prompt.at != NULL || take(body, '['))
        return -1;
    body->prompt.begin = body->begin;
    body->prompt.at = body->at;
    body->prompt.close = memchr(body->at, ']', (size_t)(body->end - body->at));
    if (body->prompt.close == NULL)
        return -1;
    body->at = body->prompt.close + 1;
    return 0;
}

static int take_model(struct body *body)
{
    struct name text;
    if (body->model != NULL || take_text(body, &text))
        return -1;
    body->model = text.at;
    body->model_end = text.at + text.length;
    return 0;
}

static int take_stream(struct body *body)
{
    if (body->stream >= 0)
        return -1;
    body->stream = TAKE_WORD(body, "true") == 0;
    return body->stream ? 0 : TAKE_WORD(body, "false");
}

static int take_max_tokens(struct body *body)
{
    const uint8_t *first = body->at;
    size_t count = take_digits(body);
    if (body->max_tokens >= 0 || count == 0 || count > WHOLE_DIGITS_MAX || (*first == '0' && count > 1))
        return -1;
    if (body->at < body->end && (*body->at == '.' || *body->at == 'e' || *body->at == 'E'))
        return -1;
    body->max_tokens = 0;
    for (; first < body->at; first++)
        body->max_tokens = 10 * body->max_tokens + (*first - '0');
    return 0;
}

/* Whether the general reader looks at a field. The names are one text, each with a space before and behind it. */
static int is_watched(const struct name *name, const Py_buffer *watched)
{
    const char *at = watched->buf, *end = at + watched->len;
    while ((at = memchr(at, ' ', (size_t)(end - at))) != NULL) {
        at++;
        if ((size_t)(end - at) <= name->length)
            return 0;
        if (at[name->length] == ' ' && memcmp(at, name->at, name->length) == 0)
            return 1;
    }
    return 0;
}

static int take_field(struct body *body, const struct name *name, const struct name *prompt, const Py_buffer *watched)
{
    if (is_name(name, (const char *)prompt->at, prompt->length))
        return take_prompt(body);
    if (IS_NAME(name, "model"))
        return take_model(body);
    if (IS_NAME(name, "stream"))
        return take_stream(body);
    if (IS_NAME(name, "max_tokens"))
        return take_max_tokens(body);
    return is_watched(name, watched) ? -1 : take_anything(body, 1);
}

static int take_body(struct body *body, const struct name *prompt, const Py_buffer *watched)
{
    struct name name;
    skip_space(body);
    if (take(body, '{'))
        return -1;
    do {
        skip_space(body);
        if (take_text(body, &name))
            return -1;
        skip_space(body);
        if (take(body, ':'))
            return -1;
        skip_space(body);
        if (take_field(body, &name, prompt, watched))
            return -1;
        skip_space(body);
    } while (take(body, ',') == 0);
    if (take(body, '}'))
        return -1;
    skip_space(body);
    return body->at == body->end && body->prompt.at != NULL && !kvr_digits_none(&body->prompt) ? 0 : -1;
}

/* -- the function ------------------------------------------------------------------------------------------------- */

static PyObject *answer(const struct body *body, int may_unlock)
{
    PyObject *words = kvr_digits_words(&body->prompt, may_unlock);
    if (words == NULL) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    PyObject *model = body->model == NULL
                          ? Py_NewRef(Py_None)
                          : PyUnicode_FromStringAndSize((const char *)body->model, body->model_end - body->model);
    PyObject *most = body->max_tokens < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(body->max_tokens);
    PyObject *result =
        model && most ? PyTuple_Pack(4, words, model, body->stream == 1 ? Py_True : Py_False, most) : NULL;
    Py_DECREF(words);
    Py_XDECREF(model);
    Py_XDECREF(most);
    return result;
}

/* read_token_body(body, name, watched) -> words, model, stream and max_tokens, or None */
static PyObject *read_token_body(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    Py_buffer text, name, watched;
    PyObject *result = NULL;
    if (given != 3) {
        PyErr_Format(PyExc_TypeError, "read_token_body takes 3 arguments, not %zd", given);
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &text, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(arguments[1], &name, PyBUF_SIMPLE) == 0) {
        if (PyObject_GetBuffer(arguments[2], &watched, PyBUF_SIMPLE) == 0) {
            struct name prompt = {name.buf, (size_t)name.len};
            struct body body = {.begin = text.buf, .at = text.buf, .stream = -1, .max_tokens = -1};
            body.end = body.begin + text.len;
            result = take_body(&body, &prompt, &watched) ? Py_NewRef(Py_None)
                                                         : answer(&body, PyBytes_Check(arguments[0]));
            PyBuffer_Release(&watched);
        }
        PyBuffer_Release(&name);
    }
    PyBuffer_Release(&text);
    return result;
}

static PyMethodDef functions[] = {
    {"read_token_body", (PyCFunction)(void (*)(void))read_token_body, METH_FASTCALL,
     "read_token_body(body, name, watched) -> (words, model, stream, max_tokens) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_json_body(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
