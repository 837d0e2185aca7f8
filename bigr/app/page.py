"""The page: a tab for each application of the model.

A tab has its inputs on the left and its result on the right; on a phone the result is below the inputs.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr
from PIL import Image

from bigr.app import panel
from bigr.app.bounds import MAX_CLASSES, MAX_STEPS, UPLOAD_SECONDS
from bigr.app.controls import HERE, QUIET, READING, Examples, asked, options, source, spoken
from bigr.app.gallery import Dataset
from bigr.app.links import COPY, Link
from bigr.app.tasks import INSIDE, OUTSIDE, Tasks, margins, model_kind
from bigr.imaging.model import INTERPOLATION_STEPS, ImageModel
from bigr.runtime.errors import BigrError

log = logging.getLogger(__name__)

DRAWING: dict[str, Any] = {**QUIET, "show_progress": "minimal", "concurrency_id": "model", "concurrency_limit": 1}
"""For events that use the model: one at a time. gradio shows the place in the queue and the time."""

FEW_CLASSES = 4
"""How many of many classes are chosen at first."""

Task = Callable[..., Iterator[str]]


@dataclass(frozen=True)
class Tab:
    """A tab, for the task of its name. says: what it is for; promise: the text of the empty result, both with {kind}
    where the word for what the model is told belongs; inputs: lays out inputs and returns those whose values the task
    takes; button: the text of the button that starts it; untold: `says` for a model that is told nothing.
    """

    name: str
    says: str
    promise: str
    inputs: Callable[[ImageModel, Examples], list[Any]]
    needs_classes: bool = False
    button: str = ""
    untold: str = ""

    def worded(self, model: ImageModel) -> tuple[str, str]:
        """`says` and `promise` for a model of classes, of texts, or of neither."""
        says = self.says if model.knows_labels else self.untold or self.says
        return says.format(kind=model_kind(model)), self.promise.format(kind=model_kind(model))


def build(model: ImageModel, dataset: Dataset | None) -> gr.Blocks:
    """The page over `model`; examples and similar images are those of `dataset`."""
    tasks, examples = Tasks(model, dataset), dataset.examples if dataset is not None else []
    with gr.Blocks(title="BiGR", analytics_enabled=False, delete_cache=(60, UPLOAD_SECONDS), fill_width=True) as page:
        gr.HTML(_heading(model), apply_default_css=False, elem_classes="heading")
        with gr.Tabs(elem_classes="tabs") as tabs:
            links = [_lay_out(tab, tasks, examples) for tab in TABS if model.knows_labels or not tab.needs_classes]
        links_by_tab = {link.tab: link for link in links}

        def opened(request: gr.Request) -> dict[Any, Any]:
            query = dict(request.query_params)
            link = links_by_tab.get(query.pop("tab", ""))
            return {tabs: gr.skip()} if link is None else {tabs: gr.Tabs(selected=link.tab), **link.read(query)}

        page.load(opened, None, [tabs, *(one for link in links for one in link.settings.values())], **QUIET)
    return page


def _lay_out(tab: Tab, tasks: Tasks, examples: Examples) -> Link:
    says, promise = tab.worded(tasks.model)
    with gr.Tab(tab.name, id=tab.name, elem_classes="tab"), gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=320, elem_classes="given"):
            gr.HTML(f"<p>{says}</p>", apply_default_css=False, elem_classes="says")
            inputs = tab.inputs(tasks.model, examples)
            with gr.Row(elem_classes="buttons"):
                start = gr.Button(tab.button or tab.name, variant="primary", scale=3, min_width=120)
                stop = gr.Button("Stop", scale=1, min_width=70)
                copy = gr.Button(COPY, scale=1, min_width=96)
        with gr.Column(scale=8, min_width=320, elem_classes="came"):
            script = (HERE / "result.js").read_text(encoding="utf-8")
            result = gr.HTML(panel.idle(promise), js_on_load=script, apply_default_css=False)
    waiting = start.click(panel.waiting, None, result, queue=False, **QUIET)
    going = waiting.then(_told(getattr(tasks, tab.name.lower())), inputs, result, **DRAWING)
    stop.click(lambda: panel.idle("Stopped."), None, result, cancels=[going], queue=False, **QUIET)
    link = Link.of(tab.name, inputs)
    link.copied_by(copy)
    return link


def _heading(model: ImageModel) -> str:
    classes = f" · {len(model.classes):,} classes" if model.knows_labels and not model.takes_texts else ""
    return (
        "<header><h1>BiGR</h1><p>Pictures from binary latent codes, the most certain tokens first</p>"
        f'<p class="facts">{model.size}×{model.size} pixels{classes}</p></header>'
    )


def _generate(model: ImageModel, examples: Examples) -> list[Any]:
    how: dict[str, Any] = {"multiselect": True, "max_choices": MAX_CLASSES}
    if model.takes_texts:
        how |= {"value": [name for _, name in examples[:FEW_CLASSES]], "info": "Type a text, and press Enter"}
        return [asked(model, "Texts", examples, **how), *options(model, variants=4)]
    if len(model.classes) > MAX_CLASSES:
        how["info"] = f"{MAX_CLASSES} at most; type to search"
    how["value"] = first_classes(len(model.classes)) if model.knows_labels else None
    return [asked(model, "Classes", examples, **how), *options(model, variants=4)]


def first_classes(count: int) -> list[int]:
    """The classes that are chosen at first: all, or a few from everywhere where there are more than may be chosen."""
    if count <= MAX_CLASSES:
        return list(range(count))
    return [place * count // FEW_CLASSES for place in range(FEW_CLASSES)]


def _inpaint(model: ImageModel, examples: Examples) -> list[Any]:
    picture, view = source(examples, panel.brush_value, brush=True)
    return [picture, view, _label(model, "Whatever fits", examples), *_editing_options(model)]


def _edit(model: ImageModel, examples: Examples) -> list[Any]:
    picture, view = source(examples, panel.brush_value, brush=True)
    label = asked(model, "Becomes", examples)
    return [picture, view, label, *_editing_options(model)]


def _outpaint(model: ImageModel, examples: Examples) -> list[Any]:
    way = gr.Radio([INSIDE, OUTSIDE], value=INSIDE, label="Way", show_label=False, container=False, render=False)
    sides: list[Any] = [
        gr.Slider(0, 100, value=value, step=5, label=f"{side}, %", min_width=180, render=False)
        for side, value in (("Left", 0), ("Top", 0), ("Right", 0), ("Bottom", 50))
    ]
    picture, view = source(examples, _outlined, beside=[way, *sides])
    way.render()
    with gr.Row(elem_classes="sliders"):
        for side in sides:
            side.render()
    parts: list[Any] = [way, *sides]
    for part in parts:
        part.change(_outlined, [picture, way, *sides], view, trigger_mode="always_last", **READING)
    return [picture, way, *sides, _label(model, "Whatever fits", examples), *_editing_options(model)]


def _interpolate(model: ImageModel, examples: Examples) -> list[Any]:
    with gr.Row(elem_classes="sliders"):
        first = asked(model, "From", examples, min_width=140)
        second = asked(model, "To", examples, place=1, min_width=140)
    steps = gr.Slider(3, MAX_STEPS, value=INTERPOLATION_STEPS, step=1, label="Pictures on the way, both ends included")
    return [first, second, steps, *options(model, variants=3, guidance=model.editing.guidance_scale)]


def _enrich(model: ImageModel, examples: Examples) -> list[Any]:
    half = max(1, model.size // 2)
    small = [(example.resize((half, half), Image.Resampling.BOX), name) for example, name in examples]
    picture, _ = source(small, panel.chosen)
    with gr.Row(elem_classes="sliders"):
        rounds = gr.Slider(1, 4, value=model.editing.enrich_rounds, step=1, label="Rounds", min_width=140)
        label = _label(model, "Unknown", examples)
    consistent = gr.Checkbox(True, label="Made small again, it is the picture given", container=False)
    settings = options(model, variants=4, guidance=model.editing.enrich_guidance_scale)
    return [picture, rounds, consistent, label, *settings]


def _features(model: ImageModel, examples: Examples) -> list[Any]:
    picture, _ = source(examples, panel.chosen)
    return [picture, gr.Slider(1, model.num_layers, value=model.feature_layer, step=1, label="Layer")]


TABS = (
    Tab(
        "Generate",
        "Draw pictures of a {kind}, or of several side by side.",
        "Pictures appear here while they are being decided.",
        _generate,
        untold="Draw pictures.",
    ),
    Tab(
        "Inpaint",
        "Paint over what is to be drawn anew. It will fit the rest of the picture, or show a {kind} that you choose.",
        "The picture, completed, appears here.",
        _inpaint,
        untold="Paint over what is to be drawn anew. It will fit the rest of the picture.",
    ),
    Tab(
        "Outpaint",
        "Replace the edges of a picture, or draw what may lie around it. The hatched part is drawn.",
        "The picture with its new surroundings appears here.",
        _outpaint,
    ),
    Tab(
        "Edit",
        "Paint over a part and choose the {kind} to draw there.",
        "The picture, changed, appears here.",
        _edit,
        needs_classes=True,
    ),
    Tab(
        "Interpolate",
        "Draw what lies between one {kind} and another.",
        "The way from one {kind} to the other appears here.",
        _interpolate,
        needs_classes=True,
    ),
    Tab(
        "Enrich",
        "Enlarge a small picture, its detail drawn by the model.",
        "The picture, in more detail, appears here.",
        _enrich,
    ),
    Tab(
        "Features",
        "See a picture as the model does: what its code keeps, and which pictures are similar.",
        "The model's view of the picture appears here.",
        _features,
        button="Look",
    ),
)
"""The page's tabs, in order."""


def _editing_options(model: ImageModel) -> list[Any]:
    return options(model, variants=4, guidance=model.editing.guidance_scale, seam=True)


def _label(model: ImageModel, none: str, examples: Examples) -> gr.Dropdown:
    return asked(model, model_kind(model).capitalize(), examples, none=none)


def _outlined(picture: Image.Image | None, way: str, *sides: float) -> str:
    if picture is None:
        return panel.outline(None, (0, 0, 0, 0), True)
    try:
        edges = margins(picture, sides)
    except BigrError as error:
        raise spoken(error) from None
    return panel.outline(picture, edges, way == INSIDE)


def _told(task: Task) -> Task:
    """The task; a `BigrError` is shown on the page, any other error goes to the log."""

    @wraps(task)
    def told(*values: Any) -> Iterator[str]:
        try:
            yield from task(*values)
        except BigrError as error:
            yield panel.refused(str(error))
            raise spoken(error) from None
        except (GeneratorExit, gr.Error):
            raise
        except Exception:
            log.exception("%s failed", task.__name__)
            yield panel.refused("Something went wrong; see the terminal")
            raise gr.Error("Something went wrong; see the terminal", print_exception=False) from None

    return told
