"""webdataset shards: tar files whose members are images, classes (`.cls`) and captions (`.txt`), or `.json` with both.

Members of one image have the same name up to the first dot of the last part of their path.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.data.images import ImageError
from bigr.data.sources.source import UNLABELLED, Sample, SourcePart, Splitting, by_split, label_of, named
from bigr.data.sources.storage import SUFFIXES, Storage
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.paths import printable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_MOST = 1_000_000
"""Images of one tar, at most: their numbers are the tar's number times this, and more."""
_TEXTS = ("text", "caption")
_LABELS = ("label", "cls", "class")


@dataclass
class TarFiles:
    """Tar files; see `bigr.data.sources.source.Source`.

    files: of each split, or all under "" where each image's split is drawn. names: of the classes, if known.
    """

    storage: Storage
    files: dict[str, list[str]]
    names: list[str] | None
    labelled: bool
    splitting: Splitting
    kind: str = "webdataset shards"
    ignored: int = 0

    @property
    def where(self) -> str:
        return self.storage.where()

    @property
    def classes(self) -> list[str] | None:
        return self.names if self.labelled else [UNLABELLED]

    def name_classes(self, names: list[str]) -> None:
        self.names = named(self.classes, names, self.where)

    def counts(self) -> None:
        """Unknown: only reading a tar tells."""

    def prepare(self, folder: Path) -> None:
        """Nothing is needed."""

    def parts(self, images: int) -> list[SourcePart]:
        return [
            SourcePart(split or None, number * _MOST, None, (name,))
            for split, names in self.files.items()
            for number, name in enumerate(names)
        ]

    def whole(self, part: SourcePart) -> str | None:
        """The path or URL of a part's tar file, where it can be used as it is: not compressed, and of one split."""
        name = part.place[0]
        if part.split is None or not name.endswith(".tar"):
            return None
        return self.storage.address(name)

    def read(self, part: SourcePart) -> Iterator[Sample]:
        name = part.place[0]
        for key, members in _grouped(self.storage, name):
            split = part.split or self.splitting.split_of(f"{name}/{key}")
            yield self.sample(f"{printable(name)}: {printable(key)}", split, members)

    def sample(self, name: str, split: str, members: dict[str, bytes]) -> Sample:
        """An image from its members by suffix; what is wrong with it is an `ImageError` in the image's place."""
        try:
            image = next((data for suffix, data in members.items() if f".{suffix}" in SUFFIXES), None)
            if image is None:
                raise ImageError(f"no image among its members ({', '.join(members)}); known: {', '.join(SUFFIXES)}")
            about = _json(members)
            value, label = _label(members, about), 0
            if self.labelled:
                if value is None:
                    raise ImageError("it has no class: neither .cls nor a label in .json")
                label = label_of(value, self.names)
            elif value is not None:
                raise ImageError("it has a class, the first image has none")
            text = _text(members, about)
        except ImageError as error:
            return Sample(name, split, error, 0)
        return Sample(name, split, image, label, text)

    def state(self, part: SourcePart) -> list[Any]:
        drawn = [self.splitting.val_fraction, self.splitting.seed] if part.split is None else None
        return [self.storage.state(part.place[0]), self.names, self.labelled, drawn]


def _json(members: dict[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        values = json.loads(members["json"])
    except ValueError as error:
        raise ImageError(f"its .json cannot be read ({error})") from None
    return values if isinstance(values, dict) else {}


def _label(members: dict[str, bytes], about: dict[str, Any]) -> Any:
    """The class as it is given, None where there is none."""
    return members.get("cls", next((about[key] for key in _LABELS if key in about), None))


def _text(members: dict[str, bytes], about: dict[str, Any]) -> str | None:
    if "txt" in members:
        try:
            return members["txt"].decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ImageError("its caption is not UTF-8") from None
    text = next((about[key] for key in _TEXTS if key in about), None)
    if not isinstance(text, str):
        return None
    try:
        text.encode()
    except UnicodeEncodeError:  # an escape of half a character, as JSON may have it
        raise ImageError("its caption is not valid text") from None
    return text


def open_tar_files(
    storage: Storage,
    files: list[str],
    names: list[str] | None,
    splitting: Splitting,
    splits: dict[str, str] | None = None,
) -> TarFiles:
    """Tar files by their names below the storage. names: of the classes; splits: of the files, where given.

    Where no name of a file tells the split, whole files are held out, if `val_fraction` makes at least one of them;
    else each image is drawn.
    """
    require("train", "reading shards")
    if not files:
        raise BigrError(f"{storage.where()} has no tar file")
    divided: dict[str, list[str]] | None
    if splits is not None:
        divided = {split: [name for name in files if splits[name] == split] for split in dict.fromkeys(splits.values())}
    else:
        divided = by_split(storage, files)
    if divided is None:
        held_out = round(len(files) * splitting.val_fraction)
        if held_out:
            chosen = set(sorted(files, key=lambda name: splitting.rank("val", name))[:held_out])
            divided = {"train": [f for f in files if f not in chosen], "val": [f for f in files if f in chosen]}
        else:
            divided = {"": files}
    first = next(_grouped(storage, files[0]), None)
    if first is None:
        raise BigrError(f"{storage.where(files[0])} has no image")
    key, members = first
    try:
        labelled = _label(members, _json(members)) is not None
    except ImageError as error:
        raise BigrError(f"{storage.where(files[0])}: {printable(key)}: {error}; repair or remove it") from None
    return TarFiles(storage, divided, names, labelled, splitting)


def _grouped(storage: Storage, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each image's key, and its members by suffix, in lower case."""
    require("train", "reading shards")
    from webdataset.tariterators import base_plus_ext

    with storage.open(name) as stream, _explained(storage, name), tarfile.open(fileobj=stream, mode="r|*") as tar:
        key, members = "", dict[str, bytes]()
        for member in tar:
            if not member.isfile():
                continue
            own, suffix = base_plus_ext(member.name)
            if not own or Path(member.name).name.startswith("."):
                continue
            if own != key and members:
                yield key, members
                members = {}
            key = own
            if suffix.lower() in members:
                raise BigrError(f"{storage.where(name)} holds {printable(member.name)} twice; give it another name")
            content = tar.extractfile(member)
            members[suffix.lower()] = content.read() if content else b""
        if members:
            yield key, members


@contextmanager
def _explained(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BigrError(f"{storage.where(name)} cannot be read as a tar file ({reason}); get it again") from None
