"""How much memory is free for a run."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: str | torch.device) -> int:
    """Bytes that this process could still claim on a device now.

    On CUDA: what nobody holds, and what torch holds without using it. Elsewhere: main memory that is available, within
    the limit of the process's control group, such as a container's or a batch job's.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *_group_rooms()])


def _group_rooms(own: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> list[int]:
    """What is left below the limit of every control group (version 2) that holds this process."""
    rooms = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        if not line.startswith("0::"):  # version 1
            continue
        folder = root / line.removeprefix("0::").strip("/")
        while folder.is_relative_to(root):
            limit, used = folder / "memory.max", folder / "memory.current"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                rooms.append(max(0, int(most) - int(used.read_text())))
            folder = folder.parent
    return rooms
