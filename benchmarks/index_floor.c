/* What this machine's memory allows at best, for `benchmarks/index_floor.py`: no index is faster than these. */
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define LINE 64
#define AHEAD 32

static double now_ns(void)
{
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Nanoseconds of a read whose address is what the one before it read; `lines` cache lines, all visited. */
EXPORT double dependent_miss(uint64_t *memory, uint64_t lines, uint64_t steps)
{
    uint64_t state = 88172645463325252u, at = 0;
    for (uint64_t line = 0; line < lines; line++)
        memory[line * (LINE / 8)] = line;
    for (uint64_t line = lines - 1; line > 0; line--) { /* One cycle through all of them (Sattolo). */
        uint64_t other = next_random(&state) % line, kept = memory[line * (LINE / 8)];
        memory[line * (LINE / 8)] = memory[other * (LINE / 8)];
        memory[other * (LINE / 8)] = kept;
    }
    double began = now_ns();
    for (uint64_t step = 0; step < steps; step++)
        at = memory[at * (LINE / 8)];
    double took = now_ns() - began;
    memory[0] ^= at & 0; /* The walk must not be optimised away. */
    return at == UINT64_MAX ? 0 : took / (double)steps;
}

/* Nanoseconds of a read at a random address that is known, and asked for, well before. */
EXPORT double prefetched_probe(uint64_t *memory, uint64_t lines, uint64_t steps)
{
    uint64_t state = 88172645463325252u, ahead[AHEAD], sum = 0;
    for (int at = 0; at < AHEAD; at++)
        ahead[at] = next_random(&state) % lines;
    double began = now_ns();
    for (uint64_t step = 0; step < steps; step++) {
        uint64_t here = ahead[step % AHEAD];
        uint64_t line = (uint64_t)(((next_random(&state) >> 32) * lines) >> 32);
        ahead[step % AHEAD] = line;
#if defined(__GNUC__) || defined(__clang__)
        __builtin_prefetch(memory + line * (LINE / 8));
#endif
        sum += memory[here * (LINE / 8)];
    }
    double took = now_ns() - began;
    memory[1] = sum;
    return took / (double)steps;
}

/* Bytes per nanosecond that are read in order. */
EXPORT double bandwidth(const uint64_t *memory, uint64_t words)
{
    uint64_t sums[8] = {0};
    double began = now_ns();
    for (uint64_t at = 0; at + 8 <= words; at += 8)
        for (int lane = 0; lane < 8; lane++)
            sums[lane] += memory[at + lane];
    double took = now_ns() - began;
    volatile uint64_t kept = 0;
    for (int lane = 0; lane < 8; lane++)
        kept += sums[lane];
    return (double)words * 8 / took;
}
