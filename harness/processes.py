"""One run on several processes, one device each: `accelerate launch run.py ...`, `torchrun ... run.py ...`.

The processes share the store and otherwise hardly talk: they deal out batches, chunks of pictures to score and the
like by rank, wait for each other, and tell each other small numbers. Rank 0, the main one, makes the edit, adds up and
writes the record; only it prints.

All talk goes over gloo, on GPUs too: gloo sees at once that another process is gone, NCCL would wait for its timeout.
Nothing here imports torch before processes have to find each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# Nothing that one process does while the others wait (an edit by training, downloads) takes longer.
PATIENCE = timedelta(days=2)
KNOCK = timedelta(seconds=5)

_joined = False


class PeerLost(RuntimeError):
    """Another process of this run is gone."""


def rank() -> int:
    """The number of this process, 0 in a run on one; what `torchrun` and `accelerate launch` put into RANK."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many processes make this run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def name() -> str:
    """What stands before a line that another process than the main one prints, once it has met the others."""
    return f"rank {rank()}: " if rank() and _joined else ""


def hush() -> None:
    """Make every process but the main one quiet: no progress bars, and warnings only. Before tqdm is imported."""
    if rank() > 0:
        os.environ["TQDM_DISABLE"] = "1"
        logging.disable(logging.INFO)


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees it; a run on one process is a team of one.

    Attributes:
        rank: of this process.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process adds up, writes and prints."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of `items`, dealt out in turn; the shares of all processes are all items, each once."""
        return items[self.rank :: self.count]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, once all have come to this line.

        Raises:
            PeerLost: a process ended before it came here.
        """
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        # Not accelerate's own: it asks its state, which a training inside this run sets anew.
        values: list[T] = [value] * self.count
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise PeerLost("another process of this run is gone; say the same command again to go on") from error
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block runs in the main process, then in the others, which find in the store what the first one made."""
        if not self.main:
            self.gather(None)
        yield
        if self.main:
            self.gather(None)


ALONE = Team()


def join(device: str) -> Team:
    """Wait for the other processes of this run; a run on one process has none.

    Args:
        device: `device` of the configuration. On CUDA every process takes the device of its number on its machine.

    Raises:
        ValueError: the device is one certain GPU, which would be every process's.
        PeerLost: the others do not answer.
    """
    global _joined
    if count() == 1:
        return ALONE
    hush()
    if device.startswith("cuda:"):
        raise ValueError(f"device={device}: a run on several processes has a device for each; say device=cuda")
    import torch
    from accelerate import PartialState

    # accelerate asks for these on cards whose NCCL would need them; NCCL is not used.
    os.environ.setdefault("NCCL_P2P_DISABLE", "1")
    os.environ.setdefault("NCCL_IB_DISABLE", "1")
    cpu = device in ("cpu", "mps") or not torch.cuda.is_available()
    place = int(os.environ.get("LOCAL_RANK", 0))
    if not cpu and place >= torch.cuda.device_count():
        raise ValueError(
            f"{place + 1} processes or more on a machine with {torch.cuda.device_count()} GPUs: start one for each GPU"
        )
    # accelerate would share the cores out anew, and another number of threads rounds sums otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    try:
        state = PartialState(cpu=cpu, backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:  # torch.distributed's own are all of this kind
        raise PeerLost(f"the other processes of this run do not answer: {error}".splitlines()[0]) from error
    _joined = True
    return Team(state.process_index, state.num_processes)


def speaks() -> bool:
    """Whether this process is the one that says how the run ended: of several that fail, the first one to ask.

    Where nobody keeps the count, because the process that did is gone or has not begun, everybody may speak.
    """
    if count() == 1:
        return True
    import torch.distributed as dist

    try:
        port = int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=KNOCK)
        return store.add(f"forget-bench/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
