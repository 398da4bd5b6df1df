/* What an answer says it cost: what `kvrouter/service/proxy/usage.py` specifies, without regular expressions. */
#include "module.h"
#include "memory.h"

/* From the opening brace on; what stands further away belongs to something else. */
#define OBJECT_BYTES_MAX 1024
#define DIGITS_MAX 15

struct text {
    const char *at;
    const char *end;
};

static int begins_with(const struct text *text, const char *word, size_t length)
{
    return (size_t)(text->end - text->at) >= length && memcmp(text->at, word, length) == 0;
}

/* What `\s` is to a regular expression over bytes. */
static void skip_space(struct text *text)
{
    while (text->at < text->end && (*text->at == ' ' || (*text->at >= '\t' && *text->at <= '\r')))
        text->at++;
}

static int skip_sign(struct text *text, char sign)
{
    skip_space(text);
    if (text->at == text->end || *text->at != sign)
        return 0;
    text->at++;
    return 1;
}

enum name { PROMPT, INPUT, COMPLETION, OUTPUT, CACHED, NAMES };

static const struct {
    const char *word;
    size_t length;
} names[NAMES] = {{"prompt", 6}, {"input", 5}, {"completion", 10}, {"output", 6}, {"cached", 6}};

#define ENDING "_tokens\""
#define ENDING_BYTES (sizeof ENDING - 1)

/* Read `prompt_tokens": 5` and the like, after the quote that opens the name; the text is moved on only if it is one. */
static int read_number(struct text *text, enum name *name, long long *value)
{
    for (*name = PROMPT; *name < NAMES; ++*name) {
        struct text rest = *text;
        if (!begins_with(&rest, names[*name].word, names[*name].length))
            continue;
        rest.at += names[*name].length;
        if (!begins_with(&rest, ENDING, ENDING_BYTES))
            return 0;
        rest.at += ENDING_BYTES;
        if (!skip_sign(&rest, ':'))
            return 0;
        skip_space(&rest);
        const char *first = rest.at;
        for (*value = 0; rest.at < rest.end && rest.at < first + DIGITS_MAX && *rest.at >= '0' && *rest.at <= '9';)
            *value = 10 * *value + (*rest.at++ - '0');
        if (rest.at == first)
            return 0;
        *text = rest;
        return 1;
    }
    return 0;
}

/* Of several numbers of one name the first counts; -1 where there is none. */
static void read_object(struct text text, long long numbers[NAMES])
{
    for (int each = 0; each < NAMES; each++)
        numbers[each] = -1;
    if (text.end - text.at > OBJECT_BYTES_MAX)
        text.end = text.at + OBJECT_BYTES_MAX;
    while (text.at < text.end && (text.at = memchr(text.at, '"', (size_t)(text.end - text.at))) != NULL) {
        enum name name;
        long long value;
        text.at++;
        if (read_number(&text, &name, &value) && numbers[name] < 0)
            numbers[name] = value;
    }
}

#define KEY "\"usage\""
#define KEY_BYTES (Py_ssize_t)(sizeof KEY - 1)

/* Move to the last `"usage": {`; 0 where there is none. */
static int find_object(struct text *text)
{
    const char *begin = text->at;
    for (const char *at = text->end - KEY_BYTES; at >= begin; at--) {
        if (*at != '"' || memcmp(at, KEY, KEY_BYTES) != 0)
            continue;
        text->at = at + KEY_BYTES;
        if (skip_sign(text, ':') && skip_sign(text, '{')) {
            text->at = at;
            return 1;
        }
    }
    return 0;
}

static PyObject *number(long long value)
{
    return value < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(value);
}

static PyObject *find_usage(PyObject *module, PyObject *tail)
{
    (void)module;
    Py_buffer buffer;
    if (PyObject_GetBuffer(tail, &buffer, PyBUF_SIMPLE))
        return NULL;
    struct text text = {buffer.buf, (const char *)buffer.buf + buffer.len};
    long long found[NAMES] = {-1, -1, -1, -1, -1};
    if (buffer.len >= KEY_BYTES && find_object(&text))
        read_object(text, found);
    PyBuffer_Release(&buffer);
    long long prompt = found[PROMPT] < 0 ? found[INPUT] : found[PROMPT];
    long long completion = found[COMPLETION] < 0 ? found[OUTPUT] : found[COMPLETION];
    if (prompt < 0 && completion < 0)
        Py_RETURN_NONE;
    return Py_BuildValue("NNN", number(prompt), number(completion), number(found[CACHED]));
}

static PyMethodDef functions[] = {
    {"find_usage", find_usage, METH_O, "find_usage(tail) -> (prompt, completion, cached) or None"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_http_usage(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
