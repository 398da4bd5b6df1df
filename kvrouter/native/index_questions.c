/* What Python asks of an index: who holds a prompt's blocks. */
#include "index_arguments.h"
#include "index_keys.h"
#include "index_match.h"
#include "index_object.h"

/* -- matching ----------------------------------------------------------------------------------------------------- */

/* Which tiers count: `*selected` stays NULL if all do. 0, or -1 with an exception set. The caller frees it. */
static int select_tiers(const struct kvr_index *index, PyObject *names, uint8_t **selected)
{
    *selected = NULL;
    if (!kvr_is_given(names))
        return 0;
    PyObject *list = PySequence_List(names);
    uint8_t *wanted = list ? PyMem_Calloc(index->tier_count + 1, 1) : NULL;
    if (wanted == NULL) {
        if (list != NULL)
            (void)PyErr_NoMemory();
        Py_XDECREF(list);
        return -1;
    }
    uint32_t count = 0;
    for (Py_ssize_t at = 0; at < PyList_Size(list); at++) {
        int tier = kvr_read_tier(index, PyList_GetItem(list, at));
        if (tier == -2) {
            Py_DECREF(list);
            PyMem_Free(wanted);
            return -1;
        }
        if (tier >= 0 && !wanted[tier]) {
            wanted[tier] = 1;
            count++;
        }
    }
    Py_DECREF(list);
    if (count == index->tier_count) {
        PyMem_Free(wanted);
        return 0;
    }
    *selected = wanted;
    return 0;
}

static int match_keys(const struct kvr_index *index, struct kvr_keys *keys, int exact, PyObject *tiers,
                      struct kvr_overlap *overlap)
{
    uint8_t *selected;
    int (*find)(const struct kvr_index *, const struct kvr_keys *, const uint8_t *, struct kvr_overlap *) =
        exact ? kvr_match_exact : kvr_match_bisect;
    if (select_tiers(index, tiers, &selected))
        return -1;
    int failed = find(index, keys, selected, overlap);
    if (failed) {
        PyMem_Free(selected);
        /* Reading the rest may run any code, also such that changes the index: only then are tiers looked up anew. */
        if (kvr_keys_fetch(keys) || select_tiers(index, tiers, &selected))
            return -1;
        failed = find(index, keys, selected, overlap);
    }
    PyMem_Free(selected);
    return failed;
}

static int match(PyObject *self, PyObject *hashes, int exact, PyObject *tiers, struct kvr_overlap *overlap)
{
    struct kvr_keys keys;
    if (kvr_keys_open_lazily(&keys, hashes))
        return -1;
    int failed = match_keys(kvr_index_of(self), &keys, exact, tiers, overlap);
    kvr_keys_close(&keys);
    return failed;
}

static int put_depth(PyObject *depths, uint32_t rank, uint32_t depth)
{
    PyObject *key = PyLong_FromUnsignedLong(rank), *value = PyLong_FromUnsignedLong(depth);
    int failed = key == NULL || value == NULL || PyDict_SetItem(depths, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed;
}

PyObject *kvr_match_depths(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_depths", 1, 2, {"hashes", "tiers"}};
    PyObject *found[2];
    struct kvr_overlap overlap;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || match(self, found[0], 1, found[1], &overlap))
        return NULL;
    PyObject *depths = PyDict_New();
    for (uint32_t word = 0; depths != NULL && word < overlap.words; word++) {
        for (uint64_t bits = overlap.ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            if (put_depth(depths, rank, overlap.depths[rank])) {
                Py_DECREF(depths);
                return NULL;
            }
        }
    }
    return depths;
}

/* match_arrays(hashes, exact, tiers) -> ranks and depths, each the bytes of uint32 numbers */
PyObject *kvr_match_arrays(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_arrays", 3, 3, {"hashes", "exact", "tiers"}};
    PyObject *found[3];
    struct kvr_overlap overlap;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int exact = PyObject_IsTrue(found[1]);
    if (exact < 0 || match(self, found[0], exact, found[2], &overlap))
        return NULL;
    uint32_t ranks[KVR_RANKS_MAX], matched = 0;
    for (uint32_t word = 0; word < overlap.words; word++) {
        for (uint64_t bits = overlap.ranks[word]; bits; bits &= bits - 1) {
            ranks[matched] = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            overlap.depths[matched] = overlap.depths[ranks[matched]];
            matched++;
        }
    }
    Py_ssize_t size = (Py_ssize_t)(matched * sizeof *ranks);
    PyObject *first = PyByteArray_FromStringAndSize((const char *)ranks, size);
    PyObject *second = first ? PyByteArray_FromStringAndSize((const char *)overlap.depths, size) : NULL;
    PyObject *pair = second ? PyTuple_Pack(2, first, second) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(second);
    return pair;
}

/* holds_bytes(rank, hashes, tier) -> a byte 0 or 1 for each hash */
PyObject *kvr_holds_bytes(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"holds_bytes", 3, 3, {"rank", "hashes", "tier"}};
    PyObject *found[3];
    uint32_t rank;
    struct kvr_keys keys;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || kvr_read_rank(found[0], &rank) ||
        kvr_keys_open(&keys, found[1]))
        return NULL;
    const struct kvr_index *index = kvr_index_of(self);
    int tier = kvr_is_given(found[2]) ? kvr_read_tier(index, found[2]) : -1;
    PyObject *held = tier == -2 ? NULL : PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)keys.count);
    char *out = held ? PyByteArray_AsString(held) : NULL;
    for (size_t at = 0; held != NULL && at < keys.count; at++) {
        uint32_t set = kvr_index_holders(index, keys.array[at]);
        out[at] = 0;
        for (uint32_t number = 0; number < index->tier_count && !out[at]; number++)
            if (!kvr_is_given(found[2]) || (int)number == tier)
                out[at] = (char)kvr_sets_has(&index->sets, set, number, rank);
    }
    kvr_keys_close(&keys);
    return held;
}
