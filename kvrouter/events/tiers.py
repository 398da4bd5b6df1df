"""Where a block lies: the many names of memory on the wire, as our three tiers."""

from typing import Final

__all__ = ["TIERS", "tier_of"]

TIERS: Final = ("gpu", "cpu", "disk")
"""Tiers that belong to one rank, fastest first."""

_TIER_BY_MEDIUM: Final[dict[str | None, str | None]] = {
    None: "gpu",
    "GPU": "gpu",
    "DEVICE": "gpu",
    "CPU": "cpu",
    "CPU_PINNED": "cpu",
    "CPU_TIER1": "cpu",
    "HOST": "cpu",
    "HOST_PINNED": "cpu",
    "DISK": "disk",
    "STORAGE": "disk",
    "NVME": "disk",
    "CPU_TIER2": "disk",
    "EXTERNAL": None,
    "REMOTE": None,
    "SHARED": None,
}
_TIER_BY_TORCH_DEVICE: Final = {"CUDA": "gpu", "HIP": "gpu", "XPU": "gpu", "NPU": "gpu", "CPU": "cpu"}


def tier_of(medium: str | None) -> str | None:
    """Return the tier of `medium`, or None when the blocks are not on this worker or the name is unknown.

    No medium means the GPU: engines older than the field have nothing else. Some
    connectors send a torch device such as `cuda:0`.
    """
    if medium is None or medium == "GPU":
        return "gpu"
    name = medium.upper()
    if name in _TIER_BY_MEDIUM:
        return _TIER_BY_MEDIUM[name]
    return _TIER_BY_TORCH_DEVICE.get(name.partition(":")[0])
