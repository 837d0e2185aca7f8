"""The plan as a page of text: aligned tables, a unit for every column."""

import math
import re
import textwrap
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from bigr.pipeline.planning.plan import Plan, StageCost
from bigr.pipeline.planning.sampling_cost import InferenceMemory

WIDTH = 100
_INDENT = "  "


def page(plan: Plan) -> list[str]:
    """The lines of the page."""
    sections = [_head(plan), _parameters(plan), _flops(plan), _memory(plan), _disk(plan), _time(plan)]
    lines = [line for section in sections for line in [*section, ""]][:-1]
    return [part for line in lines for part in _broken(line)]


def _broken(line: str) -> list[str]:
    """A line of text, wrapped where it is wider than `WIDTH`."""
    if len(line) <= WIDTH:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent=_INDENT * 3, break_long_words=False)


def _head(plan: Plan) -> list[str]:
    images = plan.images
    counted = "number not known: per image only; --images N names it"
    if images.total is not None:
        counted = f"{images.total:,} ({images.train:,} train, {images.val:,} val): {images.basis}"
    used = sorted(set(plan.precision.values()))
    stages = {kind: ", ".join(name for name, own in plan.precision.items() if own == kind) for kind in used}
    precision = used[0] if len(used) == 1 else "; ".join(f"{kind} for {stages[kind]}" for kind in used)
    return [
        f"{plan.params}, planned; nothing was trained",
        f"images     {counted}",
        f"classes    {images.classes:,} {images.classes_basis}",
        f"runs on    {plan.processes} × {plan.device}; networks in {precision}",
    ]


def _parameters(plan: Plan) -> list[str]:
    rows = []
    for network, parts in plan.parameters.items():
        if parts:
            rows.append((network, f"{sum(parts.values()) / 1e6:,.3f}"))
            rows += [(_INDENT + name, f"{number / 1e6:,.3f}") for name, number in parts.items()]
    return _table(("Parameters", "M"), rows)


def _flops(plan: Plan) -> list[str]:
    rows = []
    for stage in plan.training:
        for part in stage.parts:
            total = part.forward + part.backward
            rows.append((f"{stage.stage}: {part.name}", *map(_giga, (part.forward, part.backward, total))))
    lines = _table(("FLOPs of one image, training", "forward GFLOP", "backward GFLOP", "both GFLOP"), rows)
    if any(stage.stage != "tokenizer" for stage in plan.training):
        lines.append(f"{_INDENT}The transcoder runs on masked tokens alone: the mean over the schedule.")
    cost, passes = plan.sampling, plan.sampling.passes
    total = cost.backbone + cost.transcoder + cost.decoder
    sampled = [
        ("backbone", f"{passes.backbone:,} forward passes", _giga(cost.backbone)),
        ("transcoder", f"{passes.denoised:,} tokens denoised once", _giga(cost.transcoder)),
        ("decoder", "1 pass, in float32", _giga(cost.decoder)),
        ("all", "", _giga(total)),
        ("codes: encoder", "1 view, in float32", _giga(plan.encoder)),
    ]
    return [
        *lines,
        "",
        *_table(("FLOPs of one image, sampling", "", "GFLOP"), sampled),
    ]


def _memory(plan: Plan) -> list[str]:
    names = ("weights", "average", "optimiser", "gradients", "buckets", "activations", "peak")
    rows: list[Sequence[str]] = []
    for trained in plan.training:
        memory = [_gibi(getattr(trained.memory, name)) for name in names]
        mode = f" ({trained.parallel})" if plan.processes > 1 else ""
        rows.append((f"{trained.stage}{mode}, {_images(trained.images)}", *memory))
    cost = plan.sampling
    for stage in (InferenceMemory("samples", cost.images, cost.weights, cost.peak), *plan.inference):
        row = (f"{stage.stage}, {_images(stage.images)}", _gibi(stage.weights), *["—"] * 5, _gibi(stage.peak))
        rows.append(row)
    shown = ("weights", "EMA", "AdamW", "gradients", "buffers", "activations", "peak")
    return [
        *_table(("Memory of one process, GiB", *shown), rows),
        f"{_INDENT}Buffers: gradients that are averaged (ddp); weights and gradients that are gathered (fsdp).",
        f"{_INDENT}Activations: kept for the backward pass, with weights copied to bfloat16 under ddp. Peak: in",
        f"{_INDENT}training the sum, in the others the most at once; without the device's context, workspaces,",
        f"{_INDENT}fragmentation.",
    ]


def _disk(plan: Plan) -> list[str]:
    disk, splits = plan.disk, (plan.images.train, plan.images.val)

    def row(
        name: str, size: float, basis: str, limits: tuple[float, float] = (math.inf, math.inf)
    ) -> tuple[str, str, str, str]:
        counted = [min(images or 0, limit) for images, limit in zip(splits, limits, strict=True)]
        total = None if None in splits else sum(counted)
        return name, f"{size:,.0f}", "—" if total is None else _gibi(size * total), basis

    rows = [
        row("data/shards", disk.shard, disk.shard_basis),
        row("data/codes", disk.code, disk.code_basis),
        *([] if disk.text is None else [row("data/text", disk.text, disk.text_basis)]),
        ("samples", f"{disk.sample:,}", _gibi(disk.sample * disk.samples), disk.sample_basis),
        row("features", disk.feature, disk.feature_basis, disk.featured),
    ]
    return _table(("Disk", "bytes an image", "GiB", ""), rows)


def _time(plan: Plan) -> list[str]:
    rows = []
    unit, name = (1e15, "PFLOP") if max(_work(stage) or 0 for stage in plan.stages) >= 1e17 else (1e12, "TFLOP")
    for stage in plan.stages:
        work, seconds = _work(stage), stage.seconds(plan.speed) if plan.speed else None
        shown = "—" if work is None else f"{work / unit:,.1f}"
        rows.append((stage.name, shown, f"{stage.processes}", duration(seconds), stage.note))
    known = [stage.seconds(plan.speed) for stage in plan.stages] if plan.speed else []
    if known:
        total = sum(seconds for seconds in known if seconds is not None)
        rows.append(("all of these", "", "", duration(total), ""))
    head = ("Time of the arithmetic", name, "processes", "h:mm:ss", "")
    lines = _table(head, rows)
    if plan.speed is None:
        return [
            *lines,
            f"{_INDENT}No times: no {plan.device} here to measure; --tflops X says what one sustains.",
        ]
    speed = plan.speed
    rates = f"{speed.tflops:,.4g} TFLOP/s a process"
    if speed.float32_tflops != speed.tflops:
        rates += f" in bfloat16, {speed.float32_tflops:,.4g} in float32"
    return [
        *lines,
        f"{_INDENT}At {rates}; {speed.basis}.",
        f"{_INDENT}Not in it: element-wise work, launches, loading, validation, checkpoints, communication.",
    ]


def _work(stage: StageCost) -> float | None:
    return None if stage.flops is None else stage.flops + stage.flops_float32 + stage.flops_alone + stage.flops_beside


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.3f}" if flops < 1e11 else f"{flops / 1e9:,.1f}"


def _gibi(size: float) -> str:
    gibi = size / 2**30
    return f"{gibi:,.4f}" if gibi < 0.1 else f"{gibi:,.2f}"


def duration(seconds: float | None) -> str:
    """h:mm:ss, with days in front; — for None."""
    if seconds is None:
        return "—"
    if 0 < seconds < 1:
        return "< 0:00:01"
    return re.sub(" days?,", " d", str(timedelta(seconds=round(seconds))))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first and those without a title to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="")
    for i, title in enumerate(head):
        last = i == len(head) - 1  # wraps where the lines would be wider than `WIDTH`
        table.add_column(title, justify="right" if i and title else "left", no_wrap=not last)
    for row in rows:
        table.add_row(_INDENT + row[0], *row[1:])
    console = Console(width=WIDTH, color_system=None, markup=False, highlight=False)
    with console.capture() as lines:
        console.print(table)
    return [line.rstrip() for line in lines.get().splitlines()] if rows else []
