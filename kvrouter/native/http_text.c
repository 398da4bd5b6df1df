/* Heads from their parts: what `kvrouter/service/proxy/forwarding.py` specifies as `join_text`. */
#include "module.h"
#include "memory.h"

#define PARTS_MAX 24
/* A sign and the digits of the largest integer that is taken. */
#define NUMBER_BYTES 20

struct part {
    const char *text;
    Py_ssize_t length;
};

/* Write the digits of `value` so that they end where `end` is; return where they begin. */
static char *write_number(char *end, unsigned long long value)
{
    do
        *--end = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    return end;
}

/* Where the text of a part is; `number` is memory for it if it has to be written. -1 with an exception. */
static int read_part(PyObject *object, struct part *part, char number[NUMBER_BYTES])
{
    if (PyBytes_Check(object)) {
        part->text = PyBytes_AsString(object);
        part->length = PyBytes_Size(object);
        return 0;
    }
    if (PyUnicode_Check(object)) {
        part->text = PyUnicode_AsUTF8AndSize(object, &part->length);
        return part->text == NULL ? -1 : 0;
    }
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == (unsigned long long)-1 && PyErr_Occurred())
        return -1;
    part->text = write_number(number + NUMBER_BYTES, value);
    part->length = number + NUMBER_BYTES - part->text;
    return 0;
}

static PyObject *join_text(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    struct part parts[PARTS_MAX];
    char numbers[PARTS_MAX][NUMBER_BYTES];
    if (given > PARTS_MAX)
        return PyErr_Format(PyExc_TypeError, "join_text takes %d parts, not %zd", PARTS_MAX, given);
    Py_ssize_t total = 0;
    for (Py_ssize_t each = 0; each < given; each++) {
        if (read_part(arguments[each], &parts[each], numbers[each]))
            return NULL;
        total += parts[each].length;
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, total);
    char *out = joined == NULL ? NULL : PyBytes_AsString(joined);
    for (Py_ssize_t each = 0; out != NULL && each < given; each++) {
        memcpy(out, parts[each].text, (size_t)parts[each].length);
        out += parts[each].length;
    }
    return joined;
}

static PyMethodDef functions[] = {
    {"join_text", (PyCFunction)(void (*)(void))join_text, METH_FASTCALL, "join_text(*parts) -> bytes"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_http_text(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
