/* What continues a prefix below the GPU; `routing_tiers.h` says what is done. */
#include "routing_tiers.h"
#include "index_arguments.h"
#include "memory.h"

void kvr_copy_credits(struct kvr_credits *copy, const struct kvr_credits *credits)
{
    memcpy(copy->ranks, credits->ranks, sizeof copy->ranks);
    for (uint32_t word = 0; word < KVR_RANK_WORDS_MAX; word++) {
        for (uint64_t bits = credits->ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            copy->tokens[rank] = credits->tokens[rank];
        }
    }
}

static void give(struct kvr_credits *credits, uint32_t rank, long long tokens)
{
    credits->ranks[rank / 64] |= UINT64_C(1) << rank % 64;
    credits->tokens[rank] = tokens;
}

/* To the nearest integer, and from the middle between two to the even one, as Python rounds; of what is not negative. */
static long long rounded(double number)
{
    long long whole = (long long)number;
    double rest = number - (double)whole;
    return whole + (rest > 0.5 || (rest == 0.5 && whole & 1));
}

static void credit_tier(struct kvr_lower_tiers *work, size_t block_size, double saved, struct kvr_credits *credited)
{
    for (uint32_t word = 0; word < work->found.words; word++) {
        for (uint64_t bits = work->found.ranks[word]; bits; bits &= bits - 1) {
            uint32_t rank = word * 64 + (uint32_t)kvr_lowest_bit(bits);
            long long tokens = (long long)(work->found.depths[rank] * block_size);
            long long more = tokens - kvr_credit(&work->reached, rank);
            if (more > 0) {
                give(credited, rank, kvr_credit(credited, rank) + rounded((double)more * saved));
                give(&work->reached, rank, tokens);
            }
        }
    }
}

/* The number of a tier, -1 if nothing was ever stored there, -2 with an exception set; and what it saves. */
static int read_lower(const struct kvr_index *index, PyObject *pair, double *saved)
{
    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2 || !PyFloat_CheckExact(PyTuple_GetItem(pair, 1))) {
        PyErr_SetString(PyExc_TypeError, "a lower tier is its name and the share that loading from there saves");
        return -2;
    }
    *saved = PyFloat_AsDouble(PyTuple_GetItem(pair, 1));
    if (!(*saved >= 0.0 && *saved <= 1.0)) {
        PyErr_SetString(PyExc_ValueError, "loading from a lower tier saves a share between 0 and 1");
        return -2;
    }
    return kvr_read_tier(index, PyTuple_GetItem(pair, 0));
}

int kvr_credit_lower_tiers(const struct kvr_index *index, const struct kvr_keys *keys, size_t block_size, PyObject *lower,
                           struct kvr_credits *credited, struct kvr_lower_tiers *work)
{
    uint8_t *selected = PyMem_Calloc(index->tier_count + 1, 1);
    if (selected == NULL) {
        (void)PyErr_NoMemory();
        return -1;
    }
    int failed = 0, gpu = kvr_index_find_tier(index, "gpu", 3);
    if (gpu >= 0)
        selected[gpu] = 1;
    kvr_copy_credits(&work->reached, credited);
    for (Py_ssize_t at = 0; !failed && at < PyTuple_Size(lower); at++) {
        double saved;
        int tier = read_lower(index, PyTuple_GetItem(lower, at), &saved);
        failed = tier == -2 ? -1 : 0;
        if (tier < 0)
            continue;
        selected[tier] = 1;
        work->found.words = 0;
        failed = kvr_match_exact(index, keys, selected, &work->found);
        if (!failed)
            credit_tier(work, block_size, saved, credited);
    }
    PyMem_Free(selected);
    return failed;
}
