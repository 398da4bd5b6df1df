/* Answers as Python's own objects: a dictionary, rank to depth, or an `Overlap`, of which nothing is made but what
 * somebody asks for. */
#ifndef KVR_INDEX_ANSWERS_H
#define KVR_INDEX_ANSWERS_H

#include "index_reach.h"
#include "python_abi.h"

#define KVR_PATTERNS 4

/* A dictionary in which many ranks have one depth, to be copied: an opening that many ranks hold begins many prompts,
 * and a copy takes a sixth of the time that making it anew does. */
struct kvr_pattern {
    PyObject *depths; /* NULL where it was asked for only once */
    uint64_t ranks[KVR_RANK_WORDS_MAX];
    uint32_t words;
    uint32_t depth;
    int is_used; /* since somebody looked for a place for another one */
};

/* What an index keeps for its answers. Zeros to begin with. */
struct kvr_answers {
    PyObject *overlap_type;
    struct kvr_pattern patterns[KVR_PATTERNS];
    uint32_t next;
};

void kvr_answers_close(struct kvr_answers *answers);

/* What the patterns take, about. */
size_t kvr_answers_bytes(const struct kvr_answers *answers);

/* A new dictionary; NULL with an exception set. */
PyObject *kvr_answers_depths(struct kvr_answers *answers, const struct kvr_reach *reaches, uint32_t count,
                             uint32_t words);

/* A new Overlap; NULL with an exception set. `owner` has these answers, and `defining` is a class of the core. */
PyObject *kvr_answers_overlap(struct kvr_answers *answers, PyObject *owner, PyTypeObject *defining,
                              const struct kvr_reaches *reaches);

#endif
