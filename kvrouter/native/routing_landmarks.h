/* Which blocks of a long prompt predictions are kept for; `kvrouter/routing/landmarks.py` says why. */
#ifndef KVR_ROUTING_LANDMARKS_H
#define KVR_ROUTING_LANDMARKS_H

#include "memory.h"
#include "python_abi.h"

/* Up to this many blocks every block is a landmark, then every 8th, then every 32nd. */
#define KVR_DENSE 64
#define KVR_MIDDLE 512
#define KVR_MIDDLE_STEP 8
#define KVR_FAR_STEP 32
#define KVR_MIDDLE_COUNT (KVR_DENSE + (KVR_MIDDLE - KVR_DENSE) / KVR_MIDDLE_STEP)

/* How many landmarks a prefix of so many blocks has. */
KVR_INLINE size_t kvr_landmarks_within(size_t blocks)
{
    if (blocks <= KVR_DENSE)
        return blocks;
    if (blocks <= KVR_MIDDLE)
        return KVR_DENSE + (blocks - KVR_DENSE) / KVR_MIDDLE_STEP;
    return KVR_MIDDLE_COUNT + (blocks - KVR_MIDDLE) / KVR_FAR_STEP;
}

/* How many blocks the first `count` landmarks reach. */
KVR_INLINE size_t kvr_landmark_depth(size_t count)
{
    if (count <= KVR_DENSE)
        return count;
    if (count <= KVR_MIDDLE_COUNT)
        return KVR_DENSE + (count - KVR_DENSE) * KVR_MIDDLE_STEP;
    return KVR_MIDDLE + (count - KVR_MIDDLE_COUNT) * KVR_FAR_STEP;
}

/* The hashes at the landmarks of a prompt. */
struct kvr_landmarks {
    uint64_t *all;
    size_t count;
    uint64_t few[256];
};

/* `hashes` are `count` numbers of 64 bits, at any address. 0, or -1 without memory. */
KVR_INLINE int kvr_landmarks_open(struct kvr_landmarks *marks, const void *hashes, size_t count)
{
    marks->count = kvr_landmarks_within(count);
    marks->all = marks->few;
    if (marks->count > sizeof marks->few / sizeof *marks->few &&
        (marks->all = PyMem_Malloc(marks->count * sizeof *marks->all)) == NULL)
        return -1;
    size_t dense = marks->count < KVR_DENSE ? marks->count : KVR_DENSE;
    memcpy(marks->all, hashes, dense * sizeof *marks->all);
    for (size_t at = dense; at < marks->count; at++)
        memcpy(&marks->all[at], (const char *)hashes + sizeof(uint64_t) * (kvr_landmark_depth(at + 1) - 1),
               sizeof(uint64_t));
    return 0;
}

KVR_INLINE void kvr_landmarks_close(struct kvr_landmarks *marks)
{
    if (marks->all != marks->few)
        PyMem_Free(marks->all);
}

#endif
