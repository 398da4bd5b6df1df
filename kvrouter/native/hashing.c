/* Tokens to hashes: what `kvrouter/blocks.py` specifies, over buffers instead of Python integers.
 *
 * Tokens come as little-endian 32-bit words; hashes leave as native 64-bit words in one bytes object, because making a
 * Python integer of each would cost several times what computing it does.
 */
#include "module.h"
#include "hashing.h"

Py_ssize_t kvr_count_blocks(Py_ssize_t bytes, Py_ssize_t block_size, Py_ssize_t lookahead)
{
    Py_ssize_t stride = 4 * block_size, width = stride + 4 * lookahead;
    return bytes < width ? 0 : (bytes - width) / stride + 1;
}

/* Block size 16 is what engines use; where the length is a constant, the compiler unrolls everything. */
#define WIDTH_16 64

void kvr_hash_blocks(const uint8_t *words, Py_ssize_t count, size_t stride, size_t width, uint64_t seed, uint64_t *hashes)
{
    if (stride == WIDTH_16 && width == WIDTH_16)
        for (Py_ssize_t block = 0; block < count; block++)
            hashes[block] = kvr_xxh3_17_to_128(words + WIDTH_16 * block, WIDTH_16, seed);
    else
        for (Py_ssize_t block = 0; block < count; block++)
            hashes[block] = kvr_xxh3_64(words + stride * block, width, seed);
}

void kvr_chain(const struct kvr_parent *parent, uint64_t *hashes, Py_ssize_t count)
{
    if (count == 0)
        return;
    uint64_t sequence = parent->present ? kvr_chain_step(parent->hash, hashes[0]) : hashes[0];
    hashes[0] = sequence;
    for (Py_ssize_t block = 1; block < count; block++)
        hashes[block] = sequence = kvr_chain_step(sequence, hashes[block]);
}

/* -- arguments ---------------------------------------------------------------------------------------------------- */

int kvr_read_uint64(PyObject *object, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(object);
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

int kvr_read_parent(PyObject *object, struct kvr_parent *parent)
{
    parent->present = object != Py_None;
    parent->hash = 0;
    return parent->present ? kvr_read_uint64(object, &parent->hash) : 0;
}

static int read_size(PyObject *object, const char *name, Py_ssize_t least, Py_ssize_t most, Py_ssize_t *size)
{
    *size = PyLong_AsSsize_t(object);
    if (*size == -1 && PyErr_Occurred())
        return -1;
    if (*size >= least && *size <= most)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s is %zd; it must be %zd..%zd", name, *size, least, most);
    return -1;
}

int kvr_read_shape(PyObject *block_size, PyObject *lookahead, struct kvr_shape *shape)
{
    return read_size(block_size, "block_size", 1, KVR_BLOCK_SIZE_MAX, &shape->block_size) ||
                   read_size(lookahead, "lookahead", 0, shape->block_size, &shape->lookahead)
               ? -1
               : 0;
}

static int check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, wanted, given);
    return -1;
}

/* -- functions ---------------------------------------------------------------------------------------------------- */

static PyObject *hash_words(const struct kvr_parent *parent, const Py_buffer *words, const struct kvr_shape *shape,
                            uint64_t seed)
{
    size_t stride = 4 * (size_t)shape->block_size, width = stride + 4 * (size_t)shape->lookahead;
    Py_ssize_t count = kvr_count_blocks(words->len, shape->block_size, shape->lookahead);
    PyObject *result = PyBytes_FromStringAndSize(NULL, 8 * count);
    if (result == NULL)
        return NULL;
    uint64_t *hashes = (uint64_t *)PyBytes_AsString(result);
    PyThreadState *released = words->len >= KVR_HASH_UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
    kvr_hash_blocks(words->buf, count, stride, width, seed, hashes);
    if (parent != NULL)
        kvr_chain(parent, hashes, count);
    if (released != NULL)
        PyEval_RestoreThread(released);
    return result;
}

static PyObject *chain_hashes(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    struct kvr_parent parent;
    struct kvr_shape shape;
    uint64_t seed;
    Py_buffer words;
    if (check_count("chain_hashes", given, 5) || kvr_read_parent(arguments[0], &parent) ||
        kvr_read_shape(arguments[2], arguments[4], &shape) || kvr_read_uint64(arguments[3], &seed) ||
        PyObject_GetBuffer(arguments[1], &words, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = hash_words(&parent, &words, &shape, seed);
    PyBuffer_Release(&words);
    return result;
}

static PyObject *block_hashes(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    struct kvr_shape shape;
    uint64_t seed;
    Py_buffer words;
    if (check_count("block_hashes", given, 4) || kvr_read_shape(arguments[1], arguments[3], &shape) ||
        kvr_read_uint64(arguments[2], &seed) || PyObject_GetBuffer(arguments[0], &words, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = hash_words(NULL, &words, &shape, seed);
    PyBuffer_Release(&words);
    return result;
}

static PyObject *chain_block_hashes(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    struct kvr_parent parent;
    Py_buffer blocks;
    if (check_count("chain_block_hashes", given, 2) || kvr_read_parent(arguments[0], &parent) ||
        PyObject_GetBuffer(arguments[1], &blocks, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = NULL;
    if (blocks.len % 8)
        PyErr_Format(PyExc_ValueError, "block hashes have %zd bytes; 64-bit hashes need a multiple of 8", blocks.len);
    else if ((result = PyBytes_FromStringAndSize(blocks.buf, blocks.len)) != NULL)
        kvr_chain(&parent, (uint64_t *)PyBytes_AsString(result), blocks.len / 8);
    PyBuffer_Release(&blocks);
    return result;
}

static PyObject *xxh3_64(PyObject *module, PyObject *const *arguments, Py_ssize_t given)
{
    (void)module;
    uint64_t seed;
    Py_buffer data;
    if (check_count("xxh3_64", given, 2) || kvr_read_uint64(arguments[1], &seed) ||
        PyObject_GetBuffer(arguments[0], &data, PyBUF_SIMPLE))
        return NULL;
    uint64_t hash = kvr_xxh3_64(data.buf, (size_t)data.len, seed);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLongLong(hash);
}

#define FAST(function) #function, (PyCFunction)(void (*)(void))function, METH_FASTCALL

static PyMethodDef functions[] = {
    {FAST(chain_hashes), "chain_hashes(parent, words, block_size, seed, lookahead) -> sequence hashes"},
    {FAST(block_hashes), "block_hashes(words, block_size, seed, lookahead) -> block hashes"},
    {FAST(chain_block_hashes), "chain_block_hashes(parent, block_hashes) -> sequence hashes"},
    {FAST(xxh3_64), "xxh3_64(data, seed) -> int"},
    {NULL, NULL, 0, NULL},
};

int kvr_add_hashing(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
