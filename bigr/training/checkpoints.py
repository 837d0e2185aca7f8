"""Checkpoints: a killed training resumes with the same weights, bit for bit, in as many processes.

The states are copied to the host, and a thread writes them while the training goes on. A checkpoint is there once all
of it is written; the last two are kept, and a damaged one is passed over. It is resumed only under the fingerprint
(code, settings, inputs) that it was written under, in any number of processes, sharded or not.

Of unsharded modules only the first process reads and writes, and sends the state to the others, so that they need no
common folder. Of sharded ones each process writes its own rows, and reads them from all files: in one folder, which all
machines share, or with copies at a URL, which each machine then fetches.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bigr.runtime.distributed import (
    by_first,
    by_first_of_machine,
    copy_from_first,
    from_first,
    host_group,
    is_main,
    of_each,
    rank,
    world,
)
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors
from bigr.runtime.remote_files import NotThere
from bigr.training import checkpoint_files
from bigr.training.checkpoint_copies import CheckpointCopies, Copy
from bigr.training.checkpoint_files import Index, StoredCheckpoint, UnreadableCheckpoint
from bigr.training.parallel import is_sharded, own_rows, row_range

log = logging.getLogger(__name__)

States = dict[int, dict[str, Tensor]]
"""The state of an optimiser: index of the parameter → name → tensor."""
_OTHER = "it is a checkpoint of other code, settings or inputs"


class Checkpoint:
    """The checkpoints of one stage, in `folder`. fingerprint: of the code, the settings and the inputs.

    timeout_s: as in `process_group`; copies: where copies of them go. A copy that cannot be written is a warning.
    """

    def __init__(
        self, folder: Path, fingerprint: str, timeout_s: float = 1800, copies: CheckpointCopies | None = None
    ) -> None:
        self.folder, self.path = folder, folder / checkpoint_files.NEWEST
        self.fingerprint, self.timeout_s, self.copies = fingerprint, timeout_s, copies
        self._last, self._last_is_newest = 0, False  # the step of the last whole one; whether its file is the newest
        self._group: dist.ProcessGroup | None = None
        self._writing: Thread | None = None
        self._failed: Exception | None = None

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the write that is under way. One that failed is a warning: nothing is lost where all is done."""
        self._join()
        if kind is None and self._failed is not None:
            log.warning("%s", self._problem())

    def save(
        self,
        modules: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
        progress: Mapping[str, Any],
    ) -> None:
        """Copy the states of modules and optimisers, by name, and `progress`, and let a thread write them.

        All processes must call it. progress: JSON values, with the steps done as "step". A write that is still under
        way is waited for, so that memory holds one copy. Raises `BigrError` where that one failed.
        """
        self._join()
        self.check()
        sharded = is_sharded(modules.values())
        if not sharded and not is_main():
            return
        if sharded and self._group is None:
            self._group = host_group(self.timeout_s)
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            tensors |= {f"module/{name}/{key}": _copy(t) for key, t in module.state_dict().items() if _is_own(t)}
        for name, optimiser in optimisers.items():
            for number, state in _states(optimiser).items():
                found = {key: t for key, t in state.items() if _is_own(t)}
                tensors |= {f"optimiser/{name}/{number}/{key}": _copy(t) for key, t in found.items()}
        index = Index(self.fingerprint, progress["step"], world() if sharded else 1, dict(progress))
        self._writing = Thread(target=self._write, args=(tensors, index), name="checkpoint")
        self._writing.start()

    def _write(self, tensors: dict[str, Tensor], index: Index) -> None:
        """Write this process's file; once all are there, the first process makes them the newest checkpoint."""
        try:
            part = rank() if index.parts > 1 else 0
            path = self.folder / checkpoint_files.part_name(index.step, part, index.parts)
            problem: Exception | None = None
            try:
                metadata = checkpoint_files.metadata_of(tensors, index if part == 0 else None)
                write_tensors(path, tensors, metadata)
            except Exception as error:  # raised again in the thread that trains
                problem = error
            problem = self._of_any(problem, index.parts)
            if problem is None and part == 0:
                try:
                    self._publish(index)
                except Exception as error:
                    problem = error
            self._failed = self._of_any(problem, index.parts)
            if self._failed is None:
                if self.copies is not None:
                    self._copy(self.copies, self.path if part == 0 else path, Copy(index.step, index.parts), part)
                checkpoint_files.remove_parts(self.folder, self._last)
                self._last, self._last_is_newest = index.step, True
        except RuntimeError as error:  # another process has ended: so will this one
            log.debug("%s", error)

    def _publish(self, index: Index) -> None:
        for part in range(1, index.parts) if self.copies is None else ():
            name = checkpoint_files.part_name(index.step, part, index.parts)
            if not (self.folder / name).exists():
                raise BigrError(
                    f"process {part} wrote {name} elsewhere: all machines must share this folder for fsdp, "
                    "or run.checkpoints must be a URL"
                )
        checkpoint_files.publish(self.folder, oldest=self._last, whole=self._last_is_newest)

    def _copy(self, copies: CheckpointCopies, path: Path, copy: Copy, part: int) -> None:
        """Copy this process's file; once all are there, the first process makes the copy count."""
        problem: Exception | None = None
        try:
            copies.put(path, copy, part)
        except BigrError as error:
            problem = error
        problem = self._of_any(problem, copy.parts)
        if part:
            return
        try:
            if problem is not None:
                raise problem
            copies.publish(copy)
        except Exception as error:
            log.warning("the checkpoint of step %d has no copy (%s); training goes on", copy.step, _reason(error))

    def _of_any(self, problem: Exception | None, parts: int) -> Exception | None:
        """The problem of this process, or of another that writes a part of the same checkpoint."""
        if parts == 1:
            return problem
        others = [text for text in of_each(problem and _reason(problem), self._group) if text is not None]
        return problem or (OSError(others[0]) if others else None)

    def wait(self) -> None:
        """Wait until the checkpoint is written. Raises `BigrError` where it cannot be."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def check(self) -> None:
        """Raise `BigrError` if the last write has failed. It waits for nothing."""
        if self._failed is not None:
            raise BigrError(self._problem())

    def _problem(self) -> str:
        assert self._failed is not None
        return (
            f"the checkpoint {self.path} cannot be written ({_reason(self._failed)}); make room, or give the right to "
            "write there, and start the stage again: it continues from the checkpoint before"
        )

    def resume(
        self, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Load the saved states into modules and optimisers; return `progress`, or None if there is none to resume.

        All processes must call it; their modules and optimisers are then those of the first. Raises `BigrError` in all
        of them if they were started with different code, settings or inputs.
        """
        self._check_alike()
        sharded = is_sharded(modules.values())
        stored = self._stored(sharded)
        progress = from_first(stored.index.progress if stored else None)
        self._last = progress["step"] if progress is not None else 0
        self._last_is_newest = stored is not None and stored.paths[0] == self.path
        if stored is not None:
            for name, module in modules.items():
                _load(stored, f"module/{name}/", module)
            for name, optimiser in optimisers.items():
                _fill(optimiser, _read_states(stored, f"optimiser/{name}/", optimiser))
        if not sharded:
            shapes = from_first({name: _shapes(o) for name, o in optimisers.items()})
            if progress is not None and not is_main():
                for name, optimiser in optimisers.items():
                    _fill(optimiser, _empty_states(shapes[name], optimiser))
            copy_from_first(t for module in modules.values() for t in module.state_dict().values())
            copy_from_first(t for o in optimisers.values() for s in _states(o).values() for t in s.values())
        return progress

    def _check_alike(self) -> None:
        fingerprints = of_each(self.fingerprint)
        for number, fingerprint in enumerate(fingerprints):
            if fingerprint != fingerprints[0]:
                raise BigrError(
                    f"process {number} has other code, settings or inputs than process 0; bring the project's folder "
                    "on its machine to the same state"
                )

    def _stored(self, sharded: bool) -> StoredCheckpoint | None:
        """The newest whole checkpoint of this fingerprint, in the processes that read it; None if there is none.

        sharded: whether all processes read; else the first alone does, and the others get None. Where the folder has no
        such checkpoint, or an older one than the newest copy, the copy takes its place.
        """
        waiting = by_first(self._copies_found) if self.copies is not None else []
        reads = sharded or is_main()
        if waiting and waiting[0].step > min(of_each(self._step_here() if reads else waiting[0].step)):
            self._fetch(waiting.pop(0), sharded)
        stored = self._stored_here(sharded)
        while waiting and of_each(stored is None)[0]:
            if self._fetch(waiting.pop(0), sharded):
                stored = self._stored_here(sharded)
        return stored

    def _copies_found(self) -> list[Copy]:
        assert self.copies is not None
        self.copies.check()
        return self.copies.found()

    def _step_here(self) -> int:
        """The steps done of the newest checkpoint of this fingerprint in the folder; 0 where a file of it lacks."""
        try:
            stored = StoredCheckpoint(self.path)
        except UnreadableCheckpoint:
            return 0
        whole = stored.index.fingerprint == self.fingerprint and all(path.exists() for path in stored.paths)
        return stored.index.step if whole else 0

    def _fetch(self, copy: Copy, sharded: bool) -> bool:
        """Make a copy the newest checkpoint in the folder. False where a file of it is gone."""

        def get() -> bool:
            assert self.copies is not None
            log.info("fetching the checkpoint of step %d from %s", copy.step, self.copies.where())
            try:
                self.copies.get(copy, self.folder)
            except NotThere as error:
                log.warning("the copy of step %d is passed over: %s", copy.step, error)
                return False
            return True

        return all(of_each((by_first_of_machine if sharded else by_first)(get)))

    def _stored_here(self, sharded: bool) -> StoredCheckpoint | None:
        """As `_stored`, of the folder alone."""
        for path in (self.path, self.folder / checkpoint_files.BEFORE):
            stored, problem = None, None
            if sharded or is_main():
                stored, problem = self._open(path, *((rank(), world()) if sharded else (0, 1)))
            found = of_each((problem, stored.index.step if stored else None))
            problems, steps = [problem for problem, _ in found], {step for _, step in found} - {None}
            if all(problem is None for problem in problems):
                if len(steps) < 2:
                    return stored
                problems = ["the machines have checkpoints of different steps"]
            if self.copies is None and problems[0] is None and "" in problems:
                number = problems.index("")
                raise BigrError(
                    f"process {number} finds no {path}: all machines must share it for fsdp, or run.checkpoints must "
                    "be a URL"
                )
            if is_main() and (told := next(filter(None, problems), "")):
                log.log(logging.INFO if told == _OTHER else logging.WARNING, "%s is passed over: %s", path, told)
        return None

    def _open(self, path: Path, process: int, processes: int) -> tuple[StoredCheckpoint | None, str | None]:
        """The checkpoint, or why it is not one to resume; empty where there is none."""
        if not path.exists():
            return None, ""
        try:
            stored = StoredCheckpoint(path)
            if stored.index.fingerprint != self.fingerprint:
                return None, _OTHER
            stored.open(process, processes)
        except UnreadableCheckpoint as error:
            return None, f"the checkpoint cannot be read ({error})"
        return stored, None

    def remove(self) -> None:
        """Delete the checkpoints, and their copies."""
        checkpoint_files.remove(self.folder)
        if self.copies is not None and is_main():
            try:
                self.copies.remove()
            except BigrError as error:
                log.warning("copies of finished checkpoints remain: %s", error)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_own(tensor: Tensor) -> bool:
    """Whether this process saves the tensor, or its rows of it: what all hold is saved by the first."""
    return isinstance(tensor, DTensor) or is_main()


def _copy(tensor: Tensor) -> Tensor:
    return own_rows(tensor).detach().to("cpu", copy=True)


@torch.no_grad()
def _load(stored: StoredCheckpoint, prefix: str, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        own_rows(tensor).copy_(stored.read(prefix + name, _rows(tensor)))


def _rows(tensor: Tensor) -> tuple[int, int] | None:
    return row_range(tensor.shape[0]) if isinstance(tensor, DTensor) else None


def _like(parameter: Tensor) -> Tensor:
    """A tensor for a moment of the parameter: laid out alike, which the fused optimiser takes for granted."""
    return torch.zeros_like(parameter, requires_grad=False)


def _read_states(stored: StoredCheckpoint, prefix: str, optimiser: torch.optim.Optimizer) -> States:
    parameters = _parameters(optimiser)
    states: States = {}
    for name in stored.names(prefix):
        number, field = name.split("/", 1)
        parameter = parameters[int(number)]
        if (shape := stored.shape(prefix + name)) and shape == parameter.shape:
            tensor: Tensor = _like(parameter)
            own_rows(tensor).copy_(stored.read(prefix + name, _rows(parameter)))
        else:
            tensor = stored.read(prefix + name)
        states.setdefault(int(number), {})[field] = tensor
    return states


def _empty_states(shapes: dict[int, dict[str, torch.Size]], optimiser: torch.optim.Optimizer) -> States:
    parameters = _parameters(optimiser)
    return {
        index: {
            name: _like(parameters[index]) if s == parameters[index].shape else torch.empty(s) for name, s in of.items()
        }
        for index, of in shapes.items()
    }


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _states(optimiser: torch.optim.Optimizer) -> States:
    found: States = optimiser.state_dict()["state"]
    return found


def _shapes(optimiser: torch.optim.Optimizer) -> dict[int, dict[str, torch.Size]]:
    return {index: {name: t.shape for name, t in state.items()} for index, state in _states(optimiser).items()}


def _fill(optimiser: torch.optim.Optimizer, states: States) -> None:
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
