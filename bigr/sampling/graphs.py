"""CUDA graphs: what an iteration computes with the networks, as one launch.

One iteration of L with S = 100 launches some thousands of kernels, and a GPU that is not filled waits for Python to
launch them. The schedule fixes the shapes of every iteration, so that the launches of one call can be recorded and
replayed in the next. A graph has the kernels, the weights and the noise of the direct call: results are the same, bit
for bit.

`replayable` marks the function; `use_graphs` turns recording on for a model. A call is recorded when its like
(function, shapes, settings) comes for the second time: the first warms up, and shapes that never come again cost
nothing.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial, wraps
from threading import Lock
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
P = ParamSpec("P")
Result = TypeVar("Result")
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Records what a function launches; returns what launches it again, and the tensors that it then writes."""

MOST = 128
"""Graphs of one model that are kept, and calls that are remembered: those of four sizes of batch, of 32 iterations."""


def replayable(
    function: Callable[Concatenate[Model, P], Result],
) -> Callable[Concatenate[Model, P], Result]:
    """A function of a model, tensors and hashable values, whose launches may be recorded: see `use_graphs`.

    It returns tensors, in tuples or alone; it copies nothing between the devices, waits for nothing and draws nothing.
    """

    @wraps(function)
    def call(model: Model, *args: P.args, **kwargs: P.kwargs) -> Result:
        graphs = _graphs.get(model)
        if graphs is None or kwargs or model.training or torch.is_grad_enabled():
            return function(model, *args, **kwargs)
        return graphs(function, model, args)

    return call


def use_graphs(model: nn.Module, device: torch.device, recorder: Recorder | None = None) -> None:
    """Record and replay the replayable functions of `model`, which is on `device`; recorder: of CUDA by default."""
    if model not in _graphs:
        _graphs[model] = _Graphs(device, recorder or CudaRecorder(device))


def drop_graphs(model: nn.Module) -> None:
    """Call the functions of `model` directly again, and free its graphs."""
    _graphs.pop(model, None)


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory: none keeps anything there from one replay to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        # Autocast keeps the weights that it has converted. Those from before the graph would be freed before a replay,
        # and those in the graph are only there while it runs: each graph converts its weights, once.
        torch.clear_autocast_cache()
        try:
            with torch.cuda.device(self._device):
                self._stream = self._stream or torch.cuda.Stream(self._device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    results = work()
        finally:
            torch.clear_autocast_cache()
        self._pool = graph.pool()
        return graph.replay, results


@dataclass(frozen=True)
class _Recorded:
    """inputs: where the recorded call reads; results: where it writes."""

    inputs: list[Tensor]
    replay: Callable[[], None]
    results: Any


class _Graphs:
    """The graphs of one model."""

    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        self._device, self._record = device, recorder
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._inputs: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()  # of all graphs that read the like
        self._weights: list[int] = []
        self._failed = False
        self._lock = Lock()  # inputs are written, read and written again: not by two threads at once

    def __call__(self, function: Callable[..., Any], model: nn.Module, args: tuple[Any, ...]) -> Any:
        leaves, structure = tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if self._failed or any(tensor.device != self._device for tensor in tensors):
            return function(model, *args)
        values = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (function, str(structure), values, tuple(map(_like, tensors)), _arithmetic(self._device))
        with self._lock:
            self._forget_if_moved(model)
            known = key in self._recorded or (
                self._comes_again(key) and self._recording(key, function, model, args, tensors)
            )
            if not known:
                return function(model, *args)
            recorded = self._recorded[key]
            self._recorded.move_to_end(key)
            for own, given in zip(recorded.inputs, tensors, strict=True):
                own.copy_(given)
            recorded.replay()
            return tree_map(Tensor.clone, recorded.results)

    def _forget_if_moved(self, model: nn.Module) -> None:
        """Drop graphs that read weights where they no longer are. Those that changed in their place are read anew."""
        weights = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
        if weights != self._weights:
            self._recorded.clear()
            self._weights = weights

    def _comes_again(self, key: Hashable) -> bool:
        again = key in self._seen
        self._seen[key] = None
        if len(self._seen) > MOST:
            self._seen.popitem(last=False)
        return again

    def _recording(
        self, key: Hashable, function: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], given: list[Tensor]
    ) -> bool:
        """Record a call. False where that failed: from then on all calls are direct."""
        try:
            waiting = iter(inputs := [self._input(place, tensor) for place, tensor in enumerate(given)])
            own = tree_map(lambda leaf: next(waiting) if isinstance(leaf, Tensor) else leaf, args)
            replay, results = self._record(partial(function, model, *own))
        except RuntimeError as error:  # too little memory for the graph's own, most likely
            log.warning("continuing without CUDA graphs (%s); run.compile: off does not try them", _first_line(error))
            self._failed = True
            self._recorded.clear()
            return False
        self._recorded[key] = _Recorded(inputs, replay, results)
        if len(self._recorded) > MOST:
            self._recorded.popitem(last=False)
        return True

    def _input(self, place: int, given: Tensor) -> Tensor:
        key = (place, _like(given))
        found = self._inputs.get(key)
        if found is None:
            found = self._inputs[key] = given.clone()
        return found


_graphs: WeakKeyDictionary[nn.Module, _Graphs] = WeakKeyDictionary()


def _like(tensor: Tensor) -> Hashable:
    return tuple(tensor.shape), tensor.dtype


def _arithmetic(device: torch.device) -> Hashable:
    """What decides which kernels are launched, besides the arguments."""
    return (
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
