"""The options that the commands of bigr/cli/images_command.py share, each in one place.

A class holds options as fields; `takes` gives a command those of a class. Errors of `ImageModel` that name one of its
arguments name the option instead.
"""

import inspect
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.imaging.model import ImageModel

EXIT_INTERRUPTED = 128 + signal.SIGINT
Box = tuple[int, int, int, int]

_OPTIONS = {
    "seed": "--seed",
    "variants": "--variants",
    "preset": "--preset",
    "iterations": "--iterations",
    "guidance_scale": "--guidance",
    "diffusion_steps": "--steps",
    "label": "--label",
    "mask": "--mask",
    "margins": "--margins",
    "rounds": "--rounds",
    "steps": "--frames",
    "layer": "--layer",
}
"""The arguments of `ImageModel`, and the options that set them."""


@dataclass(frozen=True)
class Common:
    """The options of every command."""

    model: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="A project, a folder with tokenizer/ and bigr/, or models:/bigr@champion."),
    ] = "models"
    params: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in place of the model's own.", show_default=False)
    ] = None
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps; auto: a GPU if any.")] = "auto"
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the files go.")] = Path("outputs")

    def load(self) -> "ImageModel":
        """The model. Raises `BigrError` where there is none."""
        import bigr

        return bigr.load(self.model, params=self.params, device=self.device)


@dataclass(frozen=True)
class Drawn(Common):
    """The options of every command that draws images."""

    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same pictures.")] = 0
    variants: Annotated[int, typer.Option(metavar="N", help="Pictures of each, by other draws.")] = 1
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="quality, balanced or fast, of the settings; other options win over it."),
    ] = None
    iterations: Annotated[
        int | None,
        typer.Option(metavar="N", help="For a whole picture; by default those of the settings."),
    ] = None
    guidance: Annotated[
        float | None, typer.Option(metavar="X", help="Guidance scale: 1 is none, more is more typical of the class.")
    ] = None
    steps: Annotated[
        str | None,
        typer.Option(metavar="N|FIRST,LAST", help="Diffusion steps of each iteration, or of the first and the last."),
    ] = None
    trace: Annotated[
        bool, typer.Option("--trace", help="Also draw the order of the tokens: a strip and an animation.")
    ] = False

    def options(self) -> dict[str, Any]:
        """As `ImageModel` takes them."""
        return {
            "seed": self.seed,
            "variants": self.variants,
            "preset": self.preset,
            "iterations": self.iterations,
            "guidance_scale": self.guidance,
            "diffusion_steps": None if self.steps is None else _steps_of(self.steps),
        }


@dataclass(frozen=True)
class Blended(Drawn):
    """The options of a command that paints into an image."""

    blend: Annotated[
        Literal["feather", "poisson", "none"], typer.Option(help="How the painted part is joined to the picture.")
    ] = "feather"


@dataclass(frozen=True)
class Masked(Blended):
    """The options of a command that paints a marked part of an image."""

    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A picture, white (or opaque) where to paint; scaled to each image."),
    ] = None
    box: Annotated[
        str | None,
        typer.Option(metavar="L,T,R,B", help="In place of a mask: the part to paint, in pixels or per cent (0,50%,…)."),
    ] = None


Options = TypeVar("Options", bound=Common)


def _steps_of(text: str) -> int | list[int]:
    if re.fullmatch(r"\d{1,6}(,\d{1,6})?", text) is None:
        raise BigrError(f"--steps {text}: give one number, or those of the first and the last iteration, as 30,4")
    numbers = [int(number) for number in text.split(",")]
    return numbers if len(numbers) == 2 else numbers[0]


def takes(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of `options` as its own options; they reach it together, as its argument `how`.

    Its files go to outputs/<command> unless `--out` says otherwise. Interrupted, it says so in one line.
    """

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())
        hints = get_type_hints(options, include_extras=True)
        default = {"out": Path("outputs", command.__name__)}
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default.get(field.name, field.default),
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]

        @wraps(command)
        def run(**given: Any) -> None:
            how = options(**{field.name: given.pop(field.name) for field in fields(options)})
            try:
                _check_folder(how.out)
                command(**given, how=how)
            except BigrError as error:
                raise BigrError(_with_option_names(str(error), {*given, *vars(how)})) from None
            except KeyboardInterrupt:
                typer.echo(f"interrupted; pictures that were finished are in {how.out}", err=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name != "how"] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return give


def _check_folder(out: Path) -> None:
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise BigrError(f"--out {out}: {path} is a file; name a folder")


def _with_option_names(message: str, names: set[str]) -> str:
    """An error of `ImageModel` that starts with an argument's name, with that of the option, if the command has it."""
    name = re.match(r"\w*(?=:| must )", message)
    if name is None:
        return message
    rest = message[name.end() :]
    if name[0] == "image":  # its file's name follows
        return rest.lstrip(": ")
    option = _OPTIONS.get(name[0], "")
    return f"{option}{rest}" if option.removeprefix("--") in names else message


def box_of(text: str, size: tuple[int, int], what: str) -> Box:
    """`L,T,R,B` in pixels, or per cent of a picture of `size` (width, height); what: the picture, for errors."""
    values = _numbers(text, "--box", (4,), "left,top,right,bottom")
    left, top, right, bottom = _in_pixels(values, size)
    width, height = size
    if not (left < right <= width and top < bottom <= height):
        raise BigrError(
            f"--box {text} does not fit {what}, {width}×{height} pixels: give left,top,right,bottom with "
            f"0 ≤ left < right ≤ {width} and 0 ≤ top < bottom ≤ {height}"
        )
    return left, top, right, bottom


def margins_of(text: str, size: tuple[int, int]) -> Box:
    """One number of pixels (or per cent) for all sides of a picture of `size`, or `L,T,R,B`."""
    values = _numbers(text, "--margins", (1, 4), "one for all sides, or left,top,right,bottom")
    found = _in_pixels(values * (4 // len(values)), size)
    if not any(found):
        raise BigrError(f"--margins {text}: nothing would be added; give at least one side more than 0")
    return found


def _numbers(text: str, option: str, counts: tuple[int, ...], meaning: str) -> list[str]:
    values = [value.strip() for value in text.split(",")]
    if len(values) not in counts or not all(re.fullmatch(r"\d{1,6}|\d{1,3}(\.\d+)?%", value) for value in values):
        raise BigrError(f"{option} {text}: give {meaning}, in pixels or per cent of the picture, as 0,50%,100%,100%")
    return values


def _in_pixels(values: list[str], size: tuple[int, int]) -> Box:
    left, top, right, bottom = (
        round(float(value[:-1]) / 100 * side) if value.endswith("%") else int(value)
        for value, side in zip(values, (*size, *size), strict=True)
    )
    return left, top, right, bottom


def seconds(since: float) -> str:
    """The time since `time.monotonic()` was `since`, for people."""
    passed = time.monotonic() - since
    return f"{passed:.1f} s" if passed < 60 else f"{int(passed) // 60}:{int(passed) % 60:02} min"
