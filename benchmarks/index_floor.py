"""What the machine's memory allows at best, and how near the exact walk of the native index comes to it.

A walk that goes block by block makes one probe of a random cache line per block, known in advance. So the floor is a
loop that does nothing else, over as much memory as the index takes. It is written in C and compiled when it is needed.
"""

import ctypes
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

__all__ = ["Floor", "measure_floor", "measure_walk"]

_ROOT = Path(__file__).parents[1]
_SOURCE = Path(__file__).with_name("index_floor.c")
_ROUNDS = 5
_STEPS = 2_000_000
_WALK_BLOCKS = 8192
_WALKS = 64

Floor = dict[str, float]


def measure_floor(size: int) -> Floor | None:
    """Nanoseconds of a dependent and of a prefetched read, and gigabytes per second in order; None without compiler."""
    sys.path.insert(0, str(_ROOT))
    from hatch_build import BuildError, find_compiler  # noqa: PLC0415 - the build's own search for a compiler

    compiler = find_compiler()
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "floor.so"
        try:
            compiler.compile([_SOURCE], output)
        except BuildError:
            return None
        library = ctypes.CDLL(str(output))
        for name in ("dependent_miss", "prefetched_probe", "bandwidth"):
            getattr(library, name).restype = ctypes.c_double
        memory = np.ones(size // 8 + 16, np.uint64)
        address, lines = ctypes.c_void_p(memory.ctypes.data), ctypes.c_uint64(size // 64)
        steps = ctypes.c_uint64(_STEPS)
        return {
            "dependent_miss_ns": library.dependent_miss(address, lines, steps),
            "prefetched_probe_ns": min(library.prefetched_probe(address, lines, steps) for _ in range(_ROUNDS)),
            "bandwidth_gb_per_second": max(
                library.bandwidth(address, ctypes.c_uint64(size // 8)) for _ in range(_ROUNDS)
            ),
        }


def measure_walk(blocks: int) -> tuple[float, float, int]:
    """Nanoseconds per block of an exact match block by block, and by stretches, and the bytes of the index.

    Prompts are long and many, so that none is in the processor's caches when its turn comes.
    """
    from kvrouter.index.native import PrefixIndex  # noqa: PLC0415 - only where it is present

    random = np.random.default_rng(1)
    prompts = [random.integers(0, 2**64, size=_WALK_BLOCKS, dtype=np.uint64) for _ in range(_WALKS)]
    filling = random.integers(0, 2**64, size=max(0, blocks - _WALK_BLOCKS * _WALKS), dtype=np.uint64)
    found = []
    index: Any = None
    for is_chained in (False, True):
        index = PrefixIndex()
        index.store(1, filling)
        for prompt in prompts:
            (index.store_chain if is_chained else index.store)(0, prompt)
        found.append(min(_walk(index, prompts) for _ in range(_ROUNDS)))
    return found[0], found[1], index.nbytes()


def _walk(index: Any, prompts: list[Any]) -> float:
    times = []
    for prompt in prompts:
        began = perf_counter_ns()
        index.match_depths(prompt)
        times.append(perf_counter_ns() - began)
    return statistics.median(times) / _WALK_BLOCKS
