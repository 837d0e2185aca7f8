"""What a killed training needs to continue with the same weights, bit for bit: one safetensors file a stage.

The file is replaced atomically, so that a kill at any moment leaves a whole one. It is taken up again only under the
fingerprint (code, settings, inputs) that it was written under.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bigr.files import write_tensors

log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one stage, in `folder`; modules and optimisers are named."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.fingerprint = fingerprint

    def save(
        self,
        modules: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
        progress: Mapping[str, Any],
    ) -> None:
        """Write the state of modules and optimisers, and `progress` (JSON values, among them the steps done)."""
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            tensors |= {f"module/{name}/{key}": t for key, t in module.state_dict().items()}
        for name, optimiser in optimisers.items():
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser/{name}/{index}/{key}": t for key, t in state.items()}
        # safetensors refuses tensors that share memory; clones are cheap beside the write.
        tensors = {key: t.detach().cpu().clone() for key, t in tensors.items()}
        write_tensors(self.path, tensors, {"fingerprint": self.fingerprint, "progress": json.dumps(dict(progress))})

    def resume(
        self, modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, Any] | None:
        """Load what was saved into modules and optimisers, return `progress`; None where there is nothing to resume."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata()
                if header["fingerprint"] != self.fingerprint:
                    log.info("the checkpoint in %s is of other code, settings or inputs: starting afresh", self.path)
                    return None
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            log.warning("the checkpoint %s cannot be read (%s): starting afresh", self.path, error)
            return None
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"))
        for name, optimiser in optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(tensors, f"optimiser/{name}/").items():
                index, field = key.split("/", 1)
                state.setdefault(int(index), {})[field] = tensor
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        progress: dict[str, Any] = json.loads(header["progress"])
        return progress

    def remove(self) -> None:
        """Forget the checkpoint: the stage is done."""
        self.path.unlink(missing_ok=True)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
