/* Dictionaries of depths; `index_answers.h` says how they are made. */
#include "index_answers.h"

/* Fewer ranks are put in one by one. */
#define PATTERN_RANKS 16
/* An entry of a dictionary, its share of empty ones, and the number of the rank. */
#define BYTES_PER_RANK 80

static uint32_t count_ranks(uint64_t ranks)
{
    return (uint32_t)(kvr_count_bits((uint32_t)ranks) + kvr_count_bits((uint32_t)(ranks >> 32)));
}

/* -- one by one --------------------------------------------------------------------------------------------------- */

/* Give all ranks of a reach their depth. 0, or -1 with an exception set. */
static int put_reach(PyObject *depths, const struct kvr_reach *reach, PyObject *depth)
{
    for (uint64_t bits = reach->ranks; bits; bits &= bits - 1) {
        PyObject *rank = PyLong_FromUnsignedLong(reach->word * 64 + (uint32_t)kvr_lowest_bit(bits));
        int failed = rank == NULL || PyDict_SetItem(depths, rank, depth);
        Py_XDECREF(rank);
        if (failed)
            return -1;
    }
    return 0;
}

/* All but those of one depth; many in a row have the same. */
static int put_all_but(PyObject *depths, const struct kvr_reach *reaches, uint32_t count, uint64_t left_out)
{
    PyObject *depth = NULL;
    int failed = 0;
    for (uint32_t at = 0; at < count && !failed; at++) {
        if (reaches[at].depth == left_out)
            continue;
        if (depth == NULL || reaches[at].depth != reaches[at - 1].depth) {
            Py_XDECREF(depth);
            depth = PyLong_FromUnsignedLong(reaches[at].depth);
        }
        failed = depth == NULL || put_reach(depths, &reaches[at], depth);
    }
    Py_XDECREF(depth);
    return failed ? -1 : 0;
}

static PyObject *put_together(const struct kvr_reach *reaches, uint32_t count)
{
    PyObject *depths = PyDict_New();
    if (depths != NULL && put_all_but(depths, reaches, count, UINT64_MAX)) {
        Py_DECREF(depths);
        return NULL;
    }
    return depths;
}

/* -- by a pattern ------------------------------------------------------------------------------------------------- */

/* Who is in an answer, and the depth that most of them have. Returns whether a pattern is worth it. */
static int describe(const struct kvr_reach *reaches, uint32_t count, struct kvr_pattern *pattern)
{
    uint32_t total = 0, alike = 0, most = 0;
    memset(pattern->ranks, 0, pattern->words * sizeof *pattern->ranks);
    for (uint32_t at = 0; at < count; at++) {
        uint32_t ranks = count_ranks(reaches[at].ranks);
        pattern->ranks[reaches[at].word] |= reaches[at].ranks;
        alike = at > 0 && reaches[at].depth == reaches[at - 1].depth ? alike + ranks : ranks;
        total += ranks;
        if (alike > most) {
            most = alike;
            pattern->depth = reaches[at].depth;
        }
    }
    return total >= PATTERN_RANKS && most >= total / 2;
}

static int is_same(const struct kvr_pattern *one, const struct kvr_pattern *other)
{
    return one->depth == other->depth && one->words == other->words &&
           memcmp(one->ranks, other->ranks, one->words * sizeof *one->ranks) == 0;
}

/* The dictionary in which all of them have the depth that most have. */
static PyObject *make_pattern(const struct kvr_pattern *pattern)
{
    struct kvr_reach all[KVR_RANK_WORDS_MAX];
    uint32_t count = 0;
    for (uint32_t word = 0; word < pattern->words; word++) {
        struct kvr_reach reach = {pattern->ranks[word], word, pattern->depth};
        all[count] = reach;
        count += reach.ranks != 0;
    }
    return put_together(all, count);
}

/* Where such a pattern is kept: one is made when it is asked for a second time. NULL the first time. */
static struct kvr_pattern *find_pattern(struct kvr_answers *answers, const struct kvr_pattern *wanted)
{
    for (uint32_t at = 0; at < KVR_PATTERNS; at++) {
        if (is_same(&answers->patterns[at], wanted)) {
            answers->patterns[at].is_used = 1;
            return &answers->patterns[at];
        }
    }
    struct kvr_pattern *oldest = &answers->patterns[answers->next];
    answers->next = (answers->next + 1) % KVR_PATTERNS;
    if (oldest->is_used) {
        oldest->is_used = 0;
        return NULL;
    }
    Py_XDECREF(oldest->depths);
    *oldest = *wanted;
    return NULL;
}

PyObject *kvr_answers_depths(struct kvr_answers *answers, const struct kvr_reach *reaches, uint32_t count,
                             uint32_t words)
{
    struct kvr_pattern wanted = {.words = words};
    struct kvr_pattern *pattern = describe(reaches, count, &wanted) ? find_pattern(answers, &wanted) : NULL;
    if (pattern == NULL)
        return put_together(reaches, count);
    if (pattern->depths == NULL && (pattern->depths = make_pattern(pattern)) == NULL)
        return NULL;
    PyObject *depths = PyDict_Copy(pattern->depths);
    if (depths != NULL && put_all_but(depths, reaches, count, pattern->depth)) {
        Py_DECREF(depths);
        return NULL;
    }
    return depths;
}

size_t kvr_answers_bytes(const struct kvr_answers *answers)
{
    size_t bytes = 0;
    for (uint32_t at = 0; at < KVR_PATTERNS; at++)
        if (answers->patterns[at].depths != NULL)
            bytes += (size_t)PyDict_Size(answers->patterns[at].depths) * BYTES_PER_RANK;
    return bytes;
}

void kvr_answers_close(struct kvr_answers *answers)
{
    for (uint32_t at = 0; at < KVR_PATTERNS; at++)
        Py_XDECREF(answers->patterns[at].depths);
    Py_XDECREF(answers->overlap_type);
    memset(answers, 0, sizeof *answers);
}
