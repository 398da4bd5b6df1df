/* Reading ranks, tiers and names of arguments; `index_arguments.h` says which. */
#include "index_arguments.h"

#define TIER_LENGTH_MAX 64

static int place_of(const struct kvr_signature *signature, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8AndSize(name, NULL);
    for (int place = 0; text != NULL && place < signature->most; place++)
        if (strcmp(text, signature->names[place]) == 0)
            return place;
    if (text != NULL)
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%s'", signature->function, text);
    return -1;
}

int kvr_read_arguments(const struct kvr_signature *signature, PyObject *const *arguments, Py_ssize_t count,
                       PyObject *names, PyObject **found)
{
    if (count > signature->most) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments (%zd given)", signature->function,
                     signature->most, count);
        return -1;
    }
    for (int place = 0; place < signature->most; place++)
        found[place] = place < count ? arguments[place] : NULL;
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    for (Py_ssize_t at = 0; at < named; at++) {
        int place = place_of(signature, PyTuple_GetItem(names, at));
        if (place < 0)
            return -1;
        if (found[place] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", signature->function,
                         signature->names[place]);
            return -1;
        }
        found[place] = arguments[count + at];
    }
    for (int place = 0; place < signature->required; place++) {
        if (found[place] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() is missing its argument '%s'", signature->function,
                         signature->names[place]);
            return -1;
        }
    }
    return 0;
}

int kvr_read_rank(PyObject *object, uint32_t *rank)
{
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL)
        return -1;
    long value = PyLong_AsLong(integer);
    if (value == -1 && PyErr_Occurred())
        PyErr_Clear(); /* Too large for a long: out of bounds in any case. */
    Py_DECREF(integer);
    if (value < 0 || value >= KVR_RANKS_MAX) {
        PyErr_Format(PyExc_ValueError, "rank is %S; it must be 0..%d", object, KVR_RANKS_MAX - 1);
        return -1;
    }
    *rank = (uint32_t)value;
    return 0;
}

int kvr_read_tier(const struct kvr_index *index, PyObject *name)
{
    Py_ssize_t length;
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &length) : NULL;
    if (text == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "the name of a tier is a str");
        return -2;
    }
    return kvr_index_find_tier(index, text, (size_t)length);
}

int kvr_read_new_tier(struct kvr_index *index, PyObject *name)
{
    int tier = kvr_read_tier(index, name);
    if (tier != -1)
        return tier;
    Py_ssize_t length, characters = 0;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    if (text == NULL)
        return -2;
    for (Py_ssize_t at = 0; at < length; at++)
        characters += (text[at] & 0xC0) != 0x80; /* Not one of the bytes that continue a character. */
    if (characters < 1 || characters > TIER_LENGTH_MAX) {
        PyErr_Format(PyExc_ValueError, "tier %R must have 1..%d characters", name, TIER_LENGTH_MAX);
        return -2;
    }
    tier = kvr_index_add_tier(index, text, (size_t)length);
    if (tier < 0) {
        (void)PyErr_NoMemory();
        return -2;
    }
    return tier;
}

int kvr_read_secret(uint64_t *secret)
{
    PyObject *bytes = PyBytes_FromStringAndSize("kvrouter", 8);
    if (bytes == NULL)
        return -1;
    *secret = (uint64_t)PyObject_Hash(bytes);
    Py_DECREF(bytes);
    return 0;
}
