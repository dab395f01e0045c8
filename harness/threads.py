"""Work dealt out to the threads of a processor: samples of a batch, or pieces that do not need each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Rows that a thread gets at least; fewer leave its operations too small.
LEAST_SHARE = 4


def by_threads(compute: Callable[[slice], Tensor], rows: int, device: torch.device) -> Tensor:
    """`compute` for all rows, without gradients: on a CPU every thread computes a share of them by itself.

    Threads that work on an operation together wait for each other at the end of each; here they wait once.

    Args:
        compute: takes the rows [start, stop) and returns a tensor whose first axis they are. It must be safe to call
            from several threads at a time.
        rows: how many there are.
        device: what computes; on others than a CPU, and for few rows, `compute` is called once.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or rows < LEAST_SHARE * threads:
        return compute(slice(0, rows))
    ends = [rows * number // threads for number in range(threads + 1)]
    workers = _workers(threads, os.getpid())
    return torch.cat(list(workers.map(torch.no_grad()(compute), map(slice, ends, ends[1:]))))


def each_by_threads(work: Callable[[T], None], items: Iterable[T], device: torch.device) -> None:
    """`work` for every item, without gradients; on a CPU every thread does whole items by itself.

    Args:
        work: must be safe to call from several threads at a time. Its first error is raised here.
        device: what computes; on others than a CPU one item comes after the other.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    quiet = torch.no_grad()(work)
    for _ in map(quiet, items) if threads == 1 else _workers(threads, os.getpid()).map(quiet, items):
        pass


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process (a forked child has none of its parent's) whose operations use no others."""
    workers = ThreadPoolExecutor(threads, initializer=_be_alone)
    # Setting the number also sets what later threads begin with: so it is put back when all these have begun.
    meeting = threading.Barrier(threads)
    list(workers.map(lambda _: meeting.wait(), range(threads)))
    torch.set_num_threads(threads)
    return workers


def _be_alone() -> None:
    torch.get_num_threads()  # takes over what threads begin with, which would otherwise happen at the first operation
    torch.set_num_threads(1)
