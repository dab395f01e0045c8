"""One GPU for every job of a multirun on one machine: first come, first served.

Launchers that know of GPUs (Slurm, Ray) show each job its own. joblib and submitit_local start jobs beside each other
and let them all see all GPUs; there `device=auto` takes one that no other job holds.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

LOCKS = Path(tempfile.gettempdir()) / f"forget-bench-{os.getuid()}"
# Of this process, which may run several jobs: the GPU's number and its lock, which ends with the process.
_held: tuple[int, FileLock] | None = None


def free_gpu(count: int) -> int:
    """The number, among the `count` GPUs that this process sees, of one that is its own until it ends.

    Raises:
        RuntimeError: other jobs hold all of them.
    """
    global _held
    if _held is not None:
        return _held[0]
    LOCKS.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        # Its number says little: jobs may see different cards, or the same ones in another order.
        lock = FileLock(LOCKS / f"gpu-{torch.cuda.get_device_properties(number).uuid}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        _held = number, lock
        return number
    raise RuntimeError(
        f"more jobs at once than GPUs ({count}): with joblib say hydra.launcher.n_jobs={count}, with submitit_local "
        f"ask for no more than {count} jobs (docs/launchers.md)"
    )
