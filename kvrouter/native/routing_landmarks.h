/* Which blocks of a long prompt predictions are kept for; `kvrouter/routing/landmarks.py` says why. */
#ifndef KVR_ROUTING_LANDMARKS_H
#define KVR_ROUTING_LANDMARKS_H

#include "memory.h"
#include <stddef.h>

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

#endif
