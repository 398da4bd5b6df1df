/* Reading hashes from Python; `index_keys.h` says how they may come. */
#include "index_keys.h"
#include "memory.h"

/* Whether a view is a row of native unsigned 64-bit numbers. */
static int is_row_of_numbers(const Py_buffer *view)
{
    const char *format = view->format;
    if (format == NULL || view->ndim != 1 || view->itemsize != 8)
        return 0;
    if (*format == '@' || *format == '=' || (*format == '<' && !KVR_BIG_ENDIAN))
        format++;
    return (*format == 'Q' || *format == 'L') && format[1] == 0;
}

/* An array to fill with `count` hashes. */
static uint64_t *make_copy(struct kvr_keys *keys, size_t count)
{
    keys->count = count;
    if (count <= KVR_SMALL_KEYS)
        return keys->small;
    keys->copy = PyMem_Malloc(count * sizeof *keys->copy);
    if (keys->copy == NULL)
        (void)PyErr_NoMemory();
    return keys->copy;
}

/* 1 if the object is such an array and was opened, 0 if it is something else, -1 with an exception set. */
static int open_array(struct kvr_keys *keys, PyObject *hashes)
{
    if (!PyObject_CheckBuffer(hashes))
        return 0;
    if (PyObject_GetBuffer(hashes, &keys->view, PyBUF_RECORDS_RO)) {
        PyErr_Clear();
        return 0;
    }
    if (!is_row_of_numbers(&keys->view)) {
        PyBuffer_Release(&keys->view);
        return 0;
    }
    keys->viewed = 1;
    size_t count = (size_t)keys->view.shape[0];
    const char *data = keys->view.buf;
    Py_ssize_t stride = keys->view.strides[0];
    if (stride == 8 && (uintptr_t)data % sizeof(uint64_t) == 0) {
        keys->count = count;
        keys->array = keys->view.buf;
        return 1;
    }
    uint64_t *copy = make_copy(keys, count);
    if (copy == NULL)
        return -1;
    for (size_t at = 0; at < count; at++, data += stride)
        memcpy(copy + at, data, sizeof *copy);
    keys->array = copy;
    return 1;
}

static int read_hash(PyObject *object, uint64_t *hash)
{
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL)
        return -1;
    *hash = PyLong_AsUnsignedLongLong(integer);
    Py_DECREF(integer);
    return *hash == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

int kvr_keys_fetch(struct kvr_keys *keys)
{
    size_t count = (size_t)PyList_Size(keys->list);
    uint64_t *copy = make_copy(keys, count);
    if (copy == NULL)
        return -1;
    for (size_t at = 0; at < count; at++) {
        PyObject *item = PyList_GetItem(keys->list, (Py_ssize_t)at); /* Checks the bounds. */
        if (item == NULL)
            return -1;
        Py_INCREF(item);
        int wrong = read_hash(item, copy + at);
        Py_DECREF(item);
        if (wrong)
            return -1;
    }
    keys->array = copy;
    return 0;
}

int kvr_keys_open_lazily(struct kvr_keys *keys, PyObject *hashes)
{
    keys->count = 0;
    keys->array = NULL;
    keys->list = NULL;
    keys->words = NULL;
    keys->copy = NULL;
    keys->viewed = 0;
    if (!PyList_Check(hashes)) {
        int opened = open_array(keys, hashes);
        if (opened) {
            if (opened < 0)
                kvr_keys_close(keys);
            return opened < 0 ? -1 : 0;
        }
    }
    keys->list = PyList_Check(hashes) ? Py_NewRef(hashes) : PySequence_List(hashes);
    if (keys->list == NULL)
        return -1;
    keys->count = (size_t)PyList_Size(keys->list);
    return 0;
}

int kvr_keys_open(struct kvr_keys *keys, PyObject *hashes)
{
    if (kvr_keys_open_lazily(keys, hashes))
        return -1;
    if (keys->array == NULL && kvr_keys_fetch(keys)) {
        kvr_keys_close(keys);
        return -1;
    }
    return 0;
}

int kvr_keys_open_words(struct kvr_keys *keys, struct kvr_words *words, size_t length)
{
    keys->array = NULL;
    keys->list = NULL;
    keys->words = words;
    keys->copy = NULL;
    keys->viewed = 0;
    words->hashed = 0;
    words->hashes =
        make_copy(keys, (size_t)kvr_count_blocks((Py_ssize_t)length, words->shape.block_size, words->shape.lookahead));
    return words->hashes == NULL ? -1 : 0;
}

static void hash_until(struct kvr_words *words, size_t stop)
{
    size_t stride = 4 * (size_t)words->shape.block_size, width = stride + 4 * (size_t)words->shape.lookahead;
    size_t from = words->hashed;
    struct kvr_parent parent = {from > 0, from > 0 ? words->hashes[from - 1] : 0};
    Py_ssize_t count = (Py_ssize_t)(stop - from);
    kvr_hash_blocks(words->data + from * stride, count, stride, width, words->seed, words->hashes + from);
    kvr_chain(&parent, words->hashes + from, count);
    words->hashed = stop;
}

const uint64_t *kvr_keys_read(const struct kvr_keys *keys, size_t start, size_t count, uint64_t *room)
{
    if (keys->words != NULL) {
        if (start + count > keys->words->hashed)
            hash_until(keys->words, start + count);
        return keys->words->hashes + start;
    }
    for (size_t at = 0; at < count; at++) {
        PyObject *item = PyList_GetItem(keys->list, (Py_ssize_t)(start + at));
        if (item == NULL || !PyLong_CheckExact(item)) {
            PyErr_Clear();
            return NULL;
        }
        room[at] = PyLong_AsUnsignedLongLong(item);
        if (room[at] == UINT64_MAX && PyErr_Occurred()) {
            PyErr_Clear();
            return NULL;
        }
    }
    return room;
}

void kvr_keys_close(struct kvr_keys *keys)
{
    if (keys->viewed)
        PyBuffer_Release(&keys->view);
    PyMem_Free(keys->copy);
    Py_XDECREF(keys->list);
}
