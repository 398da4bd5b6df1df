/* What Python asks of an index: who holds a prompt's blocks. What it gets is made of one struct kvr_reaches. */
#include "index_arguments.h"
#include "index_keys.h"
#include "index_match.h"
#include "index_object.h"

#include <stdlib.h>

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

static int match_so(const struct kvr_index *index, const struct kvr_keys *keys, int exact, const uint8_t *selected,
                    struct kvr_reaches *reaches)
{
    struct kvr_overlap overlap;
    if (exact)
        return kvr_match_reaches(index, keys, selected, reaches);
    if (kvr_match_bisect(index, keys, selected, &overlap))
        return -1;
    kvr_reaches_gather(&overlap, reaches);
    return 0;
}

int kvr_match_keys(PyObject *self, struct kvr_keys *keys, int exact, PyObject *tiers, struct kvr_reaches *reaches)
{
    const struct kvr_index *index = kvr_index_of(self);
    uint8_t *selected;
    if (select_tiers(index, tiers, &selected))
        return -1;
    int failed = match_so(index, keys, exact, selected, reaches);
    if (failed) {
        PyMem_Free(selected);
        /* Reading the rest may run any code, also such that changes the index: only then are tiers looked up anew. */
        if (kvr_keys_fetch(keys) || select_tiers(index, tiers, &selected))
            return -1;
        failed = match_so(index, keys, exact, selected, reaches);
    }
    PyMem_Free(selected);
    return failed;
}

static int match(PyObject *self, PyObject *hashes, int exact, PyObject *tiers, struct kvr_reaches *reaches)
{
    struct kvr_keys keys;
    if (kvr_keys_open_lazily(&keys, hashes))
        return -1;
    int failed = kvr_match_keys(self, &keys, exact, tiers, reaches);
    kvr_keys_close(&keys);
    return failed;
}

/* match(hashes, exact, tiers) -> Overlap */
PyObject *kvr_match(PyObject *self, PyTypeObject *defining, PyObject *const *arguments, Py_ssize_t count,
                    PyObject *names)
{
    static const struct kvr_signature signature = {"match", 1, 3, {"hashes", "exact", "tiers"}};
    PyObject *found[3];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    int exact = found[1] ? PyObject_IsTrue(found[1]) : 1;
    if (exact < 0 || match(self, found[0], exact, found[2], &reaches))
        return NULL;
    return kvr_answers_overlap(kvr_answers_of(self), self, defining, &reaches);
}

static PyObject *list_depths(PyObject *self, const struct kvr_reaches *reaches)
{
    return kvr_answers_depths(kvr_answers_of(self), reaches->all, reaches->count, reaches->words);
}

PyObject *kvr_match_depths(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_depths", 1, 2, {"hashes", "tiers"}};
    PyObject *found[2];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found) || match(self, found[0], 1, found[1], &reaches))
        return NULL;
    return list_depths(self, &reaches);
}

/* match_tokens(words, block_size, seed, lookahead, tiers) -> the same */
PyObject *kvr_match_tokens(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {
        "match_tokens", 3, 5, {"words", "block_size", "seed", "lookahead", "tiers"}};
    PyObject *found[5];
    struct kvr_reaches reaches;
    struct kvr_words words;
    struct kvr_keys keys;
    Py_buffer view;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    PyObject *lookahead = found[3] ? Py_NewRef(found[3]) : PyLong_FromLong(0);
    int wrong = lookahead == NULL || kvr_read_shape(found[1], lookahead, &words.shape) ||
                kvr_read_uint64(found[2], &words.seed) || PyObject_GetBuffer(found[0], &view, PyBUF_SIMPLE);
    Py_XDECREF(lookahead);
    if (wrong)
        return NULL;
    words.data = view.buf;
    int failed = kvr_keys_open_words(&keys, &words, (size_t)view.len);
    if (!failed) {
        failed = kvr_match_keys(self, &keys, 1, found[4], &reaches);
        kvr_keys_close(&keys);
    }
    PyBuffer_Release(&view);
    return failed ? NULL : list_depths(self, &reaches);
}

/* -- the best ----------------------------------------------------------------------------------------------------- */

static int compare_numbers(const void *one, const void *other)
{
    uint64_t left = *(const uint64_t *)one, right = *(const uint64_t *)other;
    return (left > right) - (left < right);
}

/* The smallest `k` of `count` numbers come first, in order. */
static void sort_smallest(uint64_t *numbers, uint32_t count, uint32_t k)
{
    if (k > 8) {
        qsort(numbers, count, sizeof *numbers, compare_numbers);
        return;
    }
    for (uint32_t at = 1; at < count; at++) {
        uint64_t number = numbers[at];
        uint32_t place = at < k ? at : k - 1;
        if (at >= k && number >= numbers[place])
            continue;
        for (; place > 0 && numbers[place - 1] > number; place--)
            numbers[place] = numbers[place - 1];
        numbers[place] = number;
    }
}

/* Ranks by depth, the deepest first where they are sorted: all of them but such as `k` others certainly surpass. Reaches
 * are in the order of their depths, as a walk finds them. */
static uint32_t list_deepest(const struct kvr_reaches *reaches, size_t k, uint64_t *order)
{
    uint32_t matched = 0;
    for (uint32_t at = reaches->count; at > 0; at--) {
        const struct kvr_reach *reach = &reaches->all[at - 1];
        if (matched >= k && reach->depth < reaches->all[at].depth)
            break;
        for (uint64_t bits = reach->ranks; bits; bits &= bits - 1) {
            uint32_t rank = reach->word * 64 + (uint32_t)kvr_lowest_bit(bits);
            order[matched++] = (uint64_t)(UINT32_MAX - reach->depth) << 32 | rank;
        }
    }
    return matched;
}

PyObject *kvr_list_best(const struct kvr_reaches *reaches, Py_ssize_t k)
{
    uint64_t order[KVR_RANKS_MAX];
    uint32_t matched = list_deepest(reaches, (size_t)k, order);
    k = k < (Py_ssize_t)matched ? k : (Py_ssize_t)matched;
    sort_smallest(order, matched, (uint32_t)k);
    PyObject *best = PyList_New(k);
    for (Py_ssize_t at = 0; best != NULL && at < k; at++) {
        PyObject *pair = Py_BuildValue("(kk)", (unsigned long)(uint32_t)order[at],
                                       (unsigned long)(UINT32_MAX - (uint32_t)(order[at] >> 32)));
        if (pair == NULL || PyList_SetItem(best, at, pair)) {
            Py_DECREF(best);
            return NULL;
        }
    }
    return best;
}

Py_ssize_t kvr_read_k(PyObject *number)
{
    Py_ssize_t k = number ? PyLong_AsSsize_t(number) : 1;
    if (k >= 1)
        return k;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "k is %zd; it must be at least 1", k);
    return -1;
}

/* match_best(hashes, k, tiers) -> (rank, depth) of the k ranks that have most, deepest first */
PyObject *kvr_match_best(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_best", 1, 3, {"hashes", "k", "tiers"}};
    PyObject *found[3];
    struct kvr_reaches reaches;
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    Py_ssize_t k = kvr_read_k(found[1]);
    if (k < 0)
        return NULL;
    if (match(self, found[0], 1, found[2], &reaches))
        return NULL;
    return kvr_list_best(&reaches, k);
}

/* -- many prompts ------------------------------------------------------------------------------------------------- */

/* The answers one after the other. */
struct answers {
    uint32_t *ranks, *depths, *ends;
    size_t count, room;
};

static int add_answer(struct answers *answers, const struct kvr_reaches *reaches, Py_ssize_t prompt)
{
    struct kvr_overlap overlap;
    if (answers->room - answers->count < KVR_RANKS_MAX) {
        size_t room = 2 * answers->room + KVR_RANKS_MAX;
        uint32_t *ranks = PyMem_Realloc(answers->ranks, room * sizeof *ranks);
        if (ranks != NULL)
            answers->ranks = ranks;
        uint32_t *depths = ranks ? PyMem_Realloc(answers->depths, room * sizeof *depths) : NULL;
        if (depths == NULL) {
            (void)PyErr_NoMemory();
            return -1;
        }
        answers->depths = depths;
        answers->room = room;
    }
    kvr_reaches_spread(reaches->all, reaches->count, reaches->words, &overlap);
    answers->count +=
        kvr_overlap_list(&overlap, answers->ranks + answers->count, answers->depths + answers->count);
    answers->ends[prompt] = (uint32_t)answers->count;
    return 0;
}

static int match_each(PyObject *self, PyObject *prompts, Py_ssize_t count, PyObject *tiers, struct answers *answers)
{
    struct kvr_reaches reaches;
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *hashes = PyList_GetItem(prompts, at);
        if (hashes == NULL)
            return -1;
        Py_INCREF(hashes);
        int failed = match(self, hashes, 1, tiers, &reaches);
        Py_DECREF(hashes);
        if (failed || add_answer(answers, &reaches, at))
            return -1;
    }
    return 0;
}

static PyObject *pack_numbers(const uint32_t *numbers, size_t count)
{
    return PyByteArray_FromStringAndSize((const char *)numbers, (Py_ssize_t)(count * sizeof *numbers));
}

/* match_many_arrays(prompts, tiers) -> ranks, depths, and where the answer of each prompt ends in them; each the bytes
 * of uint32 numbers */
PyObject *kvr_match_many(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    static const struct kvr_signature signature = {"match_many_arrays", 2, 2, {"prompts", "tiers"}};
    PyObject *found[2], *result = NULL;
    struct answers answers = {NULL, NULL, NULL, 0, 0};
    if (kvr_read_arguments(&signature, arguments, count, names, found))
        return NULL;
    PyObject *prompts = PySequence_List(found[0]); /* Of our own: nobody else changes it. */
    if (prompts == NULL)
        return NULL;
    Py_ssize_t length = PyList_Size(prompts);
    answers.ends = PyMem_Malloc(((size_t)length + 1) * sizeof *answers.ends);
    if (answers.ends == NULL) {
        (void)PyErr_NoMemory();
    } else if (match_each(self, prompts, length, found[1], &answers) == 0) {
        PyObject *parts[] = {pack_numbers(answers.ranks, answers.count), pack_numbers(answers.depths, answers.count),
                             pack_numbers(answers.ends, (size_t)length)};
        if (parts[0] && parts[1] && parts[2])
            result = PyTuple_Pack(3, parts[0], parts[1], parts[2]);
        for (int at = 0; at < 3; at++)
            Py_XDECREF(parts[at]);
    }
    PyMem_Free(answers.ranks);
    PyMem_Free(answers.depths);
    PyMem_Free(answers.ends);
    Py_DECREF(prompts);
    return result;
}

/* -- single blocks ------------------------------------------------------------------------------------------------ */

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
