"""The parts of the page's tabs: an image to work on, and the settings of a call."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from bigr.app import panel
from bigr.app.bounds import MAX_GUIDANCE, MAX_SEED, MAX_VARIANTS
from bigr.app.tasks import NO_CLASS, OWN
from bigr.app.uploads import read_upload
from bigr.imaging.model import ImageModel
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

HERE = Path(__file__).parent
STATE_SECONDS = 3600
"""How long an image is kept in memory after its page was closed."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""For every event: the page has its own progress display, and no event is part of an API."""

READING: dict[str, Any] = {**QUIET, "concurrency_id": "reading", "concurrency_limit": 2}
"""For events that read images: two at a time, since each may take hundreds of megabytes."""

_THUMBNAILS = """
element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) trigger("click", { place: Number(button.dataset.place) });
});
"""

BLENDS = ["Feather", "Poisson", "None"]
Examples = Sequence[tuple[Image.Image, str]]


def spoken(error: BigrError) -> gr.Error:
    """The error as a message in the page."""
    return gr.Error(html.escape(str(error)), duration=8, title="That did not work", print_exception=False)


def source(
    examples: Examples, shown: Callable[..., Any], *, brush: bool = False, beside: Sequence[Any] = ()
) -> tuple[gr.State, gr.HTML]:
    """Examples, an upload button, and the chosen image, at first the first example: the session's own, and its view.

    shown: from the image and the values of the components `beside` to the value of the view; brush: the view is a
    canvas to paint a mask on.
    """
    first = examples[0][0] if examples else None
    state = gr.State(first, time_to_live=STATE_SECONDS)
    if brush:
        view = gr.HTML(
            shown(first),
            html_template=(HERE / "brush.html").read_text(encoding="utf-8"),
            js_on_load=(HERE / "brush.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_classes="image-input",
        )
    else:
        view = gr.HTML(
            shown(first, *(one.value for one in beside)), apply_default_css=False, elem_classes="image-input"
        )
    with gr.Row(elem_classes="sources"):
        if examples:
            thumbnails = gr.HTML(
                panel.thumbnails(examples), js_on_load=_THUMBNAILS, apply_default_css=False, elem_classes="examples"
            )

            def example(event: gr.EventData, *values: Any) -> tuple[Image.Image, Any]:
                place = event._data.get("place") if isinstance(event._data, dict) else None
                if not (isinstance(place, int) and 0 <= place < len(examples)):
                    raise gr.Error("There is no such example", print_exception=False)
                return examples[place][0], shown(examples[place][0], *values)

            thumbnails.click(example, list(beside), [state, view], **READING)
        button = gr.UploadButton("Your picture…", file_types=["image"], size="sm", elem_classes="upload", min_width=90)

    def uploaded(path: str, *values: Any) -> tuple[Image.Image, Any]:
        try:
            upload = read_upload(Path(path))
        except BigrError as error:
            raise spoken(error) from None
        picture = upload.picture
        if upload.scaled:
            size, now = ("{}×{}".format(*one) for one in (upload.size, picture.size))
            gr.Info(f"Reduced from {size} to {now} pixels", title="Made smaller")
        return picture, shown(picture, *values)

    button.upload(uploaded, [button, *beside], [state, view], **READING)
    return state, view


def asked(
    model: ImageModel, label: str, examples: Examples, *, none: str | None = None, place: int = 0, **how: Any
) -> gr.Dropdown:
    """A dropdown of the classes; or of the captions of the examples, where any text may be typed in.

    none: a first choice, no class and no text, which is then chosen; else the choice at `place`; how: of gradio's.
    """
    named: list[tuple[str, Any]] = [(name, number) for number, name in enumerate(model.classes)]
    if model.takes_texts:
        named = [(name, name) for name in dict.fromkeys(name for _, name in examples)]
        how["allow_custom_value"] = True
    if none is not None:
        named.insert(0, (none, NO_CLASS))
    if "value" not in how:
        how["value"] = named[min(place, len(named) - 1)][1] if named else None
    return gr.Dropdown(named, label=label, visible=model.knows_labels, **how)


def options(model: ImageModel, *, variants: int, guidance: float | None = None, seam: bool = False) -> list[Any]:
    """The options of every call: seed, variants, preset, iterations, guidance, diffusion steps (of the first iteration
    and of the last), in this order. Choosing a preset sets the sliders.

    guidance: that of editing, which presets leave as it is, else the sampler's own; seam: before the options, how a
    painted part is blended into the image.
    """
    limits, sampling = model.limits(), model.sampling
    first_guidance = sampling.guidance_scale if guidance is None else guidance
    with gr.Row(elem_classes="sliders"):
        number = gr.Slider(1, MAX_VARIANTS, value=variants, step=1, label="Variants", min_width=140)
        seed = gr.Slider(0, MAX_SEED, value=0, step=1, label="Seed", min_width=140)
        dice = gr.Button("Random", size="sm", scale=0, min_width=76, elem_classes="dice")
    dice.click(None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED + 1})", **QUIET)
    with gr.Accordion("Sampler", open=False, elem_classes="sampler"), gr.Row(elem_classes="sliders"):
        preset: Any = gr.State(OWN)
        if model.presets:
            preset = gr.Radio([OWN, *model.presets], value=OWN, label="Preset", min_width=280)
        least, most = limits["iterations"]
        iterations = gr.Slider(least, most, value=sampling.iterations, step=1, label="Iterations", min_width=140)
        scale = gr.Slider(
            0, max(MAX_GUIDANCE, first_guidance), value=first_guidance, step=0.1, label="Guidance", min_width=140
        )
        steps: list[Any] = [gr.State(None), gr.State(None)]
        if "diffusion_steps" in limits:
            least, most = limits["diffusion_steps"]
            steps = [
                gr.Slider(least, most, value=count, step=1, label=label, min_width=140)
                for label, count in zip(("Diffusion steps", "Diffusion steps at the end"), ends(sampling), strict=True)
            ]
        if seam:
            blend = gr.Radio(BLENDS, value=BLENDS[0], label="Seam", elem_classes="blend", min_width=280)

    def of_preset(name: str) -> list[float]:
        chosen = model.presets.get(name, sampling)
        own = chosen.guidance_scale if guidance is None else guidance
        return [chosen.iterations, own, *(ends(chosen) if "diffusion_steps" in limits else (None, None))]

    if model.presets:
        preset.input(of_preset, preset, [iterations, scale, *steps], **QUIET)
    return [*([blend] if seam else []), seed, number, preset, iterations, scale, *steps]


def ends(sampling: Sampling) -> tuple[int, int]:
    """The diffusion steps of the first iteration and of the last."""
    return sampling.steps(0), sampling.steps(sampling.iterations - 1)
