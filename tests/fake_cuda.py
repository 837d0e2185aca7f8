"""CUDA without a GPU: the project's own code, run on tensors that say they are on `cuda:0` and hold no values.

Inside `fake_cuda` torch believes that there is one GPU. Tensors on the CPU are ordinary ones. A tensor that is put on
the GPU becomes a `FakeTensor` of torch's `FakeTensorMode`: shape, type and device, and the dispatch keys of CUDA, so
that CUDA's autocast casts and refuses what it casts and refuses on a GPU. Whatever the code brings back from there is a
stand-in (`answers`). So that a whole stage can run: it reads its inputs, trains or samples, and writes files of
nonsense.

What this shows, in seconds and on any machine:

- an operation that CUDA's autocast refuses, as `F.binary_cross_entropy`;
- tensors of two devices in one operation, and a generator of another device than its draws;
- an operation that CUDA has no deterministic kernel for, where deterministic ones are asked for;
- a wait for the GPU (`Waits`): `.item()`, `float()`, `.tolist()`, `.cpu()`, `nonzero`, a boolean mask as an index, and
  every copy to the GPU that is not asynchronous from pinned memory, such as `torch.tensor(list, device="cuda")`. Waits
  are allowed in `READS` alone, the documented places;
- what a CUDA graph cannot hold (`NotRecordable`): while one is recorded, any wait, any copy between the devices, any
  draw from a generator; and, when it is replayed, a tensor that it read and that is gone.

What it cannot show: any value, so nothing of precision, NaN or determinism; whether a kernel exists, or fits into
memory; speed; streams, NCCL and several GPUs. In a backward pass devices are not told apart in C++ (a CPU-only torch
has no queue for CUDA there).
tests/test_gpu.py shows the rest, on a GPU.
"""

import contextlib
import ctypes
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import bigr

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
PACKAGE = str(Path(bigr.__file__).parent) + "/"

READS = {
    # looks at losses and figures, now and then
    "training/loop.py Losses.read": "the losses of the last steps, in one transfer",
    "training/checkpoints.py Checkpoint.save": "a checkpoint out",
    "training/checkpoints.py Checkpoint.resume": "a checkpoint in",
    "interop/folders.py save": "the finished model",
    "stages/train_tokenizer.py validation": "the validation images, once",
    "stages/train_tokenizer.py validation.<locals>.validate": "a point of the curves",
    "training/masked_batches.py FixedMasks.__init__": "the validation codes, once",
    "stages/train_generator.py run.<locals>.validate": "a point of the curves",
    "stages/train_transcoder.py run.<locals>.validate": "a point of the curves",
    # what is unknown, once before the iterations, whose shapes hang on it
    "sampling/unmask.py sample_codes": "the number of unknown tokens, once in a call",
    "sampling/inputs.py check_finite": "whether the weights are finite, once before sampling",
    "sampling/editing.py inpaint_codes": "the number of unknown tokens, and the images that take as many iterations",
    "sampling/editing.py enrich_codes": "the groups of tokens of a round",
    # inputs and results of a batch
    "data/codes.py encode_shard": "images in, codes out",
    "sampling/decode.py decoded": "images out",
    "stages/draw_samples.py run": "the labels of a batch",
    "imaging/sampler.py Sampler.pixels": "a picture in",
    "imaging/frames.py pictures_of": "the images of an iteration",
    "imaging/frames.py entropies_of": "the entropies of an iteration",
    "imaging/model.py ImageModel._labels": "the labels of a call",
    "imaging/similarity.py token_averages": "features out",
    "evaluation/fidelity/classifier.py Classifier.predict": "images in, classes out",
    "evaluation/representation/features.py token_averages": "the codes of a batch",
    "evaluation/representation/features.py write_features": "features out",
    "evaluation/representation/features.py Features.statistics": "statistics out, once",
    "evaluation/imagesets/image_stream.py reconstructions.<locals>.stream": "codes in, images out",
    "evaluation/fidelity/extractors.py weights_hash": "the extractor's weights, once",
    "evaluation/measurement.py off_device": "a module that was trained, once",
    "evaluation/captions/trained_judge.py CaptionJudge.see": "images in, vectors out",
    "evaluation/captions/trained_judge.py CaptionJudge.read": "texts in, vectors out",
    "evaluation/fidelity/statistics.py measure": "images in, features out",
    "evaluation/fidelity/statistics.py measure_share": "images in, features out",
    "evaluation/fidelity/distances.py Fidelity.compare": "features in, metrics out",
    "evaluation/fidelity/distances.py Fidelity.precision_recall": "features in, metrics out",
    "evaluation/representation/linear_probe.py _accuracies": "the accuracies of a split",
    "evaluation/representation/nearest_neighbours.py nearest_neighbours": "a block of features",
    "evaluation/imagesets/labelled_sources.py source_codes": "images of a batch",
    "evaluation/fidelity/neighbours.py nearest": "distances and places, once",
}
"""Where the code may wait for the GPU, and for what: functions of the package, and all that they call."""

ONCE = ("sampling/unmask.py sample_codes",)
"""Those of `READS` that may wait once in a call, at the beginning."""

_SYNCHRONISE = {
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "bincount",
}


_NO_DETERMINISTIC_KERNEL = (
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("reflection_pad3d_backward", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "nll_loss_forward", "nll_loss2d_forward"),
    *("nll_loss_backward", "nll_loss2d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("put_", "histc", "median", "kthvalue", "cumsum", "cumsum_", "cumprod", "scatter_reduce", "scatter_reduce_"),
)
"""What `torch.use_deterministic_algorithms` lists as raising an error on CUDA."""


class Waits(AssertionError):
    """The code waits for the GPU where `READS` does not say that it may."""


class NotRecordable(AssertionError):
    """The code does in a CUDA graph what a replay would not repeat."""


class FakeCuda(FakeTensorMode):
    """The mode; see `fake_cuda`.

    reads: how often each place of `READS` has waited; recorded, replayed: how many CUDA graphs were, and how often.
    """

    def __init__(self, answers: Mapping[str, float]) -> None:
        super().__init__()
        self.answers, self.reads = answers, Counter[str]()
        self.in_backward = False
        self.recorded = self.replayed = 0
        self.recording: _Graph | None = None
        self._pinned: set[int] = set()
        self._once: dict[str, FrameType] = {}

    @property
    def avoid_device_init(self) -> bool:
        return True  # torch asks `cuda.is_available`, which says yes here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return META if self.in_backward else CUDA
        kwargs = dict(kwargs or {})
        if self.in_backward and kwargs.get("device") == META:
            kwargs["device"] = CUDA
        name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
        here = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        target = kwargs.get("device")
        to_gpu = target is not None and target.type == "cuda"
        if not here and not to_gpu:
            return func(*args, **kwargs)

        strict = torch.are_deterministic_algorithms_enabled() and not (
            torch.is_deterministic_algorithms_warn_only_enabled()
        )
        if strict and name in _NO_DETERMINISTIC_KERNEL and any(leaf.is_floating_point() for leaf in here):
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        if name in ("_local_scalar_dense", "is_nonzero"):
            return torch.full((), self._answer(name), dtype=here[0].dtype).item()
        if name in _SYNCHRONISE or (name == "repeat_interleave" and "output_size" not in kwargs):
            self._wait(name)
        if name == "_to_copy" and here and target == CPU:
            return torch.full(
                here[0].shape, self._answer("a copy to the CPU"), dtype=kwargs.get("dtype") or here[0].dtype
            )
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            return args[0].fill_(self._answer("a copy to the CPU"))
        if name in ("_to_copy", "copy_") and not isinstance(args[-1], FakeTensor):
            source = args[-1]
            asynchronous = kwargs.get("non_blocking") and source.data_ptr() in self._pinned
            if source.device == CPU and not asynchronous:
                self._wait("a copy from the CPU that is not asynchronous from pinned memory")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            for index in (index for index in args[1] if index is not None):
                if index.dtype in (torch.bool, torch.uint8):
                    self._wait("a boolean mask as an index")
                if not isinstance(index, FakeTensor):
                    self._wait("an index on the CPU")
            if not here:
                self._not_recordable("a copy between the devices")
        args, kwargs = tree_map(self._as_fake, (args, kwargs))
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if self.recording is not None:
            self.recording.note(here, tree_leaves(found))
        return found

    def __deepcopy__(self, memo: Any) -> "FakeCuda":
        return self  # of a copied tensor too

    def put(self, tensor: Tensor, device: torch.device = CUDA) -> FakeTensor:
        """A tensor as one that is on `device` without values."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with torch._C._DisableTorchDispatch():
            return FakeTensor(self, tensor.detach().to(META), device)

    def pin(self, tensor: Tensor) -> Tensor:
        """What `Tensor.pin_memory` does here: a copy that is known by its address."""
        self._not_recordable("a copy between the devices")
        copy = tensor.clone()
        self._pinned.add(copy.data_ptr())
        return copy

    def _as_fake(self, leaf: Any) -> Any:
        return self.put(leaf, leaf.device) if isinstance(leaf, Tensor) and leaf.device == CPU else leaf

    def _answer(self, what: str) -> float:
        return self.answers.get(self._wait(what), 1)

    def _wait(self, what: str) -> str:
        """The place of `READS` in which the code waits. Raises `Waits` where it is in none."""
        self._not_recordable(what)
        around = list(places())
        for place, frame in around:
            if place in ONCE:
                if self._once.get(place) is frame:
                    break
                self._once[place] = frame
            if place in READS:
                self.reads[place] += 1
                return place
        raise Waits(f"{what}, in {around[0][0] if around else 'the test'}: the code waits for the GPU")

    def _not_recordable(self, what: str) -> None:
        if self.recording is not None:
            raise NotRecordable(f"{what}, in {next(iter(places()))[0]}: a CUDA graph would not repeat it")

    @contextlib.contextmanager
    def graph(self, graph: "_Graph", **_: Any) -> Iterator[None]:
        """What `torch.cuda.graph` is here."""
        self.recording, self.recorded = graph, self.recorded + 1
        try:
            yield
        finally:
            self.recording = None
            graph.made.clear()


class _Graph:
    """What `torch.cuda.CUDAGraph` is here: it knows the tensors from outside that it read."""

    def __init__(self, mode: FakeCuda) -> None:
        self.mode = mode
        self.made: dict[int, Any] = {}
        self.read: dict[int, weakref.ref[Any]] = {}

    def note(self, read: list[Any], made: list[Any]) -> None:
        """Note an operation."""
        self.read.update({id(tensor): weakref.ref(tensor) for tensor in read if id(tensor) not in self.made})
        self.made.update({id(tensor): tensor for tensor in made if id(tensor) not in self.read})

    def pool(self) -> None:
        """All graphs have one."""

    def replay(self) -> None:
        """Raises `NotRecordable` where a tensor that the graph read is gone."""
        self.mode.replayed += 1
        if gone := sum(found() is None for found in self.read.values()):
            raise NotRecordable(f"{gone} tensors that the graph reads are gone")


def places() -> Iterator[tuple[str, FrameType]]:
    """The functions of the package that are being called, innermost first, named as in `READS`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            yield f"{code.co_filename.removeprefix(PACKAGE)} {code.co_qualname}", frame
        frame = frame.f_back


class _Generator(torch.Generator):
    """A generator that says it is on the device that it was asked for."""

    _device: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made._device = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self._device


class _Draws(TorchFunctionMode):
    """Leaves out a generator that only says it is on the GPU; as torch does, raises where the draws are not there."""

    def __init__(self, mode: FakeCuda) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator):
            device = torch.device(kwargs.get("device") or (args[0].device if isinstance(args[0], Tensor) else CPU))
            if device.type != generator.device.type:
                raise RuntimeError(f"{func.__name__}: a generator on {generator.device} for draws on {device}")
            if device.type == "cuda":
                self.mode._not_recordable("a draw from a generator")
                kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_cuda(answers: Mapping[str, float] | None = None) -> Iterator[FakeCuda]:
    """Let torch believe in one GPU, as the module says.

    answers: for places of `READS`, what every number is that is read there; 1 where none is given.
    """
    mode = FakeCuda(answers or {})
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    dispatch = FakeTensor.__torch_dispatch__.__func__  # type: ignore[attr-defined]
    to = nn.Module.to

    def dispatched(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return META if mode.in_backward or mode.in_kernel_invocation else CUDA
        return dispatch(cls, func, types, args, kwargs or {})

    def module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is None or device.type != "cuda":
            return to(module, *args, **kwargs)
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(mode.put(parameter), parameter.requires_grad)
            part._buffers.update({name: mode.put(b) for name, b in part._buffers.items() if b is not None})
        return module

    def backward_of(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            mode.in_backward = True
            try:
                return function(*args, **kwargs)
            finally:
                mode.in_backward = False

        return call

    patches = [
        patch.object(FakeTensor, "__torch_dispatch__", classmethod(dispatched)),
        patch.object(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist()),
        patch.object(nn.Module, "to", module_to),
        patch.object(Tensor, "backward", backward_of(Tensor.backward)),
        patch.object(Tensor, "pin_memory", lambda tensor: mode.pin(tensor)),
        patch.object(torch.autograd, "grad", backward_of(torch.autograd.grad)),
        patch.object(torch, "Generator", _Generator),
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.object(torch.cuda, "CUDAGraph", lambda: _Graph(mode)),
        patch.object(torch.cuda, "graph", mode.graph),
        patch.object(torch.cuda, "Stream", lambda device: None),
        patch.object(torch.cuda, "device", lambda device: contextlib.nullcontext()),
        patch.object(FakeTensor, "data_ptr", lambda tensor: id(tensor)),
        patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        patch.dict("os.environ"),
        _device_guard(),
        torch.autograd.set_multithreading_enabled(False),
        _Draws(mode),
        mode,
    ]
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        try:
            yield mode
        finally:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """Give torch a guard for CUDA that does nothing, where it has none: autograd notes a tensor's stream through it.

    Torch does the same for `FakeTensorMode` where it was built with CUDA (`torch._C._ensureCUDADeviceGuardSet`). A
    build for CPUs has no such guard; the one of the device `meta`, which does nothing, is lent to it.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # as c10/core/DeviceType.h numbers them
    if lent := not guards[cuda]:
        guards[cuda] = guards[meta]
    try:
        yield
    finally:
        if lent:
            guards[cuda] = None
