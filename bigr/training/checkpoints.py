"""Checkpoints: a killed training resumes with the same weights, bit for bit. One safetensors file for each stage.

The states are copied to the host, and a thread writes them while the training goes on. The file is replaced
atomically. It is resumed only under the fingerprint (code, settings, inputs) that it was written under. Of several
processes only the first reads and writes it and sends the state to the others, so that they need no shared folder.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bigr.runtime.distributed import copy_from_first, from_first, is_main, of_each
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors

log = logging.getLogger(__name__)

States = dict[int, dict[str, Tensor]]
"""The state of an optimiser: index of the parameter → name → tensor."""


class Checkpoint:
    """The checkpoint of one stage, in `folder`. fingerprint: of the code, the settings and the inputs."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.fingerprint = fingerprint
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

        progress: JSON values, such as the steps done. A write that is still under way is waited for, so that memory
        holds one copy. Raises `BigrError` where that one failed.
        """
        self._join()
        self.check()
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            tensors |= {f"module/{name}/{key}": _copy(t) for key, t in module.state_dict().items()}
        for name, optimiser in optimisers.items():
            for index, state in _states(optimiser).items():
                tensors |= {f"optimiser/{name}/{index}/{key}": _copy(t) for key, t in state.items()}
        metadata = {"fingerprint": self.fingerprint, "progress": json.dumps(dict(progress))}
        self._writing = Thread(target=self._write, args=(tensors, metadata), name="checkpoint")
        self._writing.start()

    def _write(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            write_tensors(self.path, tensors, metadata)
        except Exception as error:  # raised again in the thread that trains
            self._failed = error

    def _join(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def check(self) -> None:
        """Raise `BigrError` if the last write has failed. It waits for nothing."""
        if self._failed is not None:
            raise BigrError(self._problem())

    def _problem(self) -> str:
        reason = getattr(self._failed, "strerror", None) or str(self._failed) or type(self._failed).__name__
        return (
            f"the checkpoint {self.path} cannot be written ({reason}); make room, or give the right to write there, "
            "and start the stage again: it continues from the checkpoint before"
        )

    def resume(
        self, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Load the saved states into modules and optimisers; return `progress`, or None if there is none to resume.

        All processes must call it; their modules and optimisers are then those of the first. Raises `BigrError` in all
        of them if they were started with different code, settings or inputs.
        """
        self._check_alike()
        progress = self._load(modules, optimisers) if is_main() else None
        progress, shapes = from_first((progress, {name: _shapes(o) for name, o in optimisers.items()}))
        if progress is not None and not is_main():
            for name, optimiser in optimisers.items():
                _fill(optimiser, {i: {f: torch.empty(s) for f, s in of.items()} for i, of in shapes[name].items()})
        copy_from_first(t for module in modules.values() for t in module.state_dict().values())
        copy_from_first(t for optimiser in optimisers.values() for s in _states(optimiser).values() for t in s.values())
        return progress

    def _check_alike(self) -> None:
        fingerprints = of_each(self.fingerprint)
        for number, fingerprint in enumerate(fingerprints):
            if fingerprint != fingerprints[0]:
                raise BigrError(
                    f"process {number} has other code, settings or inputs than process 0; bring the project's folder "
                    "on its machine to the same state"
                )

    def _load(
        self, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata()
                if header["fingerprint"] != self.fingerprint:
                    log.info("the checkpoint %s is of other code, settings or inputs: starting from step 0", self.path)
                    return None
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            progress: dict[str, Any] = json.loads(header["progress"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("the checkpoint %s cannot be read (%s): starting from step 0", self.path, error)
            return None
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"))
        for name, optimiser in optimisers.items():
            state: States = {}
            for key, tensor in _below(tensors, f"optimiser/{name}/").items():
                index, field = key.split("/", 1)
                state.setdefault(int(index), {})[field] = tensor
            _fill(optimiser, state)
        return progress

    def remove(self) -> None:
        """Delete the checkpoint."""
        self.path.unlink(missing_ok=True)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _states(optimiser: torch.optim.Optimizer) -> States:
    found: States = optimiser.state_dict()["state"]
    return found


def _shapes(optimiser: torch.optim.Optimizer) -> dict[int, dict[str, torch.Size]]:
    return {index: {name: t.shape for name, t in state.items()} for index, state in _states(optimiser).items()}


def _fill(optimiser: torch.optim.Optimizer, states: States) -> None:
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, state in optimiser.state.items():  # in its own order in memory, as the fused kernel reads
        for field, value in state.items():
            if value.shape == parameter.shape:
                state[field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
