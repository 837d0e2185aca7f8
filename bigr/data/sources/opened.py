"""Opens a source of images by its path or URL, and tells the kinds apart by content."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bigr.data.sources.arrays import CIFAR10, CIFAR100, IDX_IMAGES, open_cifar, open_idx, open_npz
from bigr.data.sources.image_folder import ImageFolder, caption_of, open_image_folder
from bigr.data.sources.listing import Entry, Listing
from bigr.data.sources.parquet_files import ParquetFiles, open_parquet_files
from bigr.data.sources.source import Source, Splitting, checked_names, class_names
from bigr.data.sources.storage import LocalStorage, RemoteStorage, Storage
from bigr.data.sources.tar_files import TAR_SUFFIXES, TarFiles, open_tar_files
from bigr.runtime.copies import Cache, cache_of
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.paths import has_pattern, is_url, local_path, printable
from bigr.runtime.remote_files import is_web, parent_of
from bigr.runtime.threads import map_ahead

_MAGIC = {b"PAR1": "parquet", b"ARROW1": "manifest", b"PK\x03\x04": "npz", b"\0\0\x08": "idx"}
_PICKLES = ("data_batch_1", "batches.meta", "meta")  # of CIFAR's Python version
_CHUNK = 1 << 16
_REQUESTS = 16
_INNER = ("train", "val", "validation", "test", "data")  # folders in which files of a split may be


def open_source(
    source: str,
    root: Path,
    splitting: Splitting,
    *,
    cache: Cache | None = None,
    names: list[str] | None = None,
    option: str = "shards.source",
    warn: bool = True,
) -> Source:
    """Open a path (absolute, or relative to `root`) or URL: a folder, a file, or files by a pattern with braces.

    cache: of remote files, by default the project's; names: of the classes, where the source numbers them; option: the
    setting or option that names the source, for messages; warn: whether what is not read is logged. Reads what is
    needed to tell the kind, the classes and the parts, and no image. Raises `BigrError` where it is of no known kind.
    """
    try:
        opened = _opened(local_path(source), root, splitting, cache or cache_of(root), warn)
        if names is not None:
            opened.name_classes(checked_names(names, "shards.class_names"))
        return opened
    except BigrError as error:
        raise BigrError(f"{option}: {error}") from None


def _opened(source: str, root: Path, splitting: Splitting, cache: Cache, warn: bool) -> Source:
    if has_pattern(source):
        return _of_pattern(source, root, splitting, cache)
    if is_url(source):
        require("train", "reading images")
        return _remote(source, splitting, cache, warn)
    path = root / source
    if not path.exists():
        raise BigrError(f"{printable(str(path))} does not exist; name a folder or a file of images")
    if path.is_dir():
        return _folder(LocalStorage(path), splitting, warn)
    return _file(LocalStorage(path.parent), path.name, root, splitting, cache)


def _remote(source: str, splitting: Splitting, cache: Cache, warn: bool) -> Source:
    if is_web(source) and "?" in source:
        raise BigrError(f"{source}: an address with ? is not read; leave out what follows it, or download the file")
    folder, name = parent_of(source)
    suffixes = (*TAR_SUFFIXES, ".parquet", ".npz", ".gz", "-ubyte", ".arrow")
    if name.lower().endswith(suffixes):
        return _file(RemoteStorage(folder, cache=cache), name, Path(), splitting, cache)
    return _folder(RemoteStorage(source.rstrip("/"), cache=cache), splitting, warn)


def _of_pattern(source: str, root: Path, splitting: Splitting, cache: Cache) -> Source:
    require("train", "patterns with braces")
    from braceexpand import braceexpand

    fixed = source[: source.index("{")]
    folder, _, _ = fixed.rpartition("/")
    rest = source[len(folder) + 1 if folder else 0 :]
    if is_url(source) and not urlsplit(folder).netloc:
        raise BigrError(f"{source}: braces must come after the bucket or the server; name a source for each")
    storage: Storage = RemoteStorage(folder, cache=cache) if is_url(source) else LocalStorage(root / folder)
    rest = unquote(rest) if is_web(source) else rest
    try:
        files = list(braceexpand(rest))
    except ValueError as error:
        raise BigrError(f"{source}: {error}; write {{0000..0099}} or {{a,b}}") from None
    if isinstance(storage, LocalStorage) and (
        missing := [name for name in files if not (storage.root / name).is_file()]
    ):
        more = f", nor do {len(missing) - 1} others of {len(files)}" if len(missing) > 1 else ""
        raise BigrError(f"{source}: {missing[0]} does not exist{more}; correct the pattern")
    return _files(storage, files, splitting)


def _files(
    storage: Storage, files: list[str], splitting: Splitting, names: list[str] | None = None, splits: Any = None
) -> Source:
    """Tar or parquet files that are all named."""
    names = names or class_names(storage)
    if all(name.lower().endswith(TAR_SUFFIXES) for name in files):
        return open_tar_files(storage, files, names, splitting, splits)
    if all(name.lower().endswith(".parquet") for name in files):
        return open_parquet_files(storage, files, names, splitting, splits)
    other = next(name for name in files if not name.lower().endswith(".parquet"))
    raise BigrError(f"{storage.where(other)}: several files must be all tar files or all parquet files")


def _file(storage: Storage, name: str, root: Path, splitting: Splitting, cache: Cache) -> Source:
    with storage.open(name) as stream:
        head = stream.read(512)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "manifest" and isinstance(storage, LocalStorage):
        return _of_manifest(Listing.open(storage.root / name), root, splitting, cache)
    if kind == "manifest":
        raise BigrError(f"{storage.where(name)}: a manifest must be a file here; download it, and name the copy")
    if kind == "npz":
        return open_npz(storage, name, splitting)
    if kind == "idx" or IDX_IMAGES.fullmatch(name):
        return open_idx(storage, name, splitting)
    if kind == "parquet" or name.lower().endswith(".parquet"):
        return open_parquet_files(storage, [name], class_names(storage), splitting)
    if head[257:262] == b"ustar" or name.lower().endswith(TAR_SUFFIXES):
        return open_tar_files(storage, [name], class_names(storage), splitting)
    raise BigrError(
        f"{storage.where(name)} is a file of no known kind; name a folder of images, a .tar, .parquet, .npz or IDX "
        "file, or a manifest"
    )


def _folder(storage: Storage, splitting: Splitting, warn: bool = True) -> Source:
    folders, files = storage.entries()
    inner = {name: storage.entries(f"{name}/") for name in folders if name in _INNER}
    deep = any(name not in _INNER for name in folders) or any(found[0] for found in inner.values())
    below = [*files, *(f"{name}/{file}" for name, (_, found) in inner.items() for file in found)]
    if not deep:
        kinds: dict[str, list[str]] = {
            "tar": [name for name in below if name.lower().endswith(TAR_SUFFIXES)],
            "parquet": [name for name in below if name.lower().endswith(".parquet")],
        }
        several = [kind for kind, found in kinds.items() if found]
        if len(several) > 1:
            raise BigrError(
                f"{storage.where()} holds tar files and parquet files; name those to read by a pattern with braces"
            )
        if several:
            return _files(storage, kinds[several[0]], splitting)
        if any(IDX_IMAGES.fullmatch(name) for name in files):
            return open_idx(storage, None, splitting)
        if any(name in files for name in (*CIFAR10[0], *CIFAR100[0])):
            return open_cifar(storage, splitting)
        if any(name in files for name in _PICKLES):
            raise BigrError(
                f"{storage.where()} is CIFAR in its version for Python, of pickles, which can run any code and are not "
                "read; get the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
            )
        npz = [name for name in files if name.lower().endswith(".npz")]
        if npz:
            if len(npz) > 1:
                raise BigrError(f"{storage.where()} holds {len(npz)} .npz files; name one, such as {npz[0]}")
            return open_npz(storage, npz[0], splitting)
    return open_image_folder(storage, splitting, warn=warn)


# Manifests


def manifest_of(source: Source) -> Listing:
    """A listing of the source's files, or of the images of an image folder, with what changes with each.

    The stage `shards` reads it in the source's place. Raises `ValueError` for arrays, which need none.
    """
    import pyarrow as pa

    if isinstance(source, ImageFolder):
        listing, chunks = source.listing, []
        for start in range(0, len(listing), _CHUNK):
            entries = listing.rows(start, min(start + _CHUNK, len(listing)))
            chunks.append(pa.array(_states(source.storage, entries), pa.large_string()))
        return listing.with_columns(state=pa.chunked_array(chunks, pa.large_string()))
    if isinstance(source, TarFiles):
        rows = [(name, split) for split, names in source.files.items() for name in names]
    elif isinstance(source, ParquetFiles):
        rows = [(name, split) for name, split, _ in source.files]
    else:
        raise ValueError("a manifest is of image folders, tar and parquet files")
    table = pa.table(
        {
            "file": pa.array([name.encode() for name, _ in rows], pa.large_binary()),
            "split": pa.array([split for _, split in rows], pa.large_string()),
            "state": pa.array([json.dumps(source.storage.state(name)[1:]) for name, _ in rows], pa.large_string()),
        }
    )
    return Listing(
        {"kind": source.kind, "root": source.where, "classes": source.classes, "ignored": source.ignored}, None, table
    )


def _states(storage: Storage, entries: Iterable[Entry]) -> Iterator[str]:
    """What changes with each image: remote images are asked for several at a time."""

    def state(entry: Entry) -> str:
        names = [entry.file, caption_of(entry.file)] if entry.captioned else [entry.file]
        return json.dumps([storage.state(name)[1:] for name in names])

    return map(state, entries) if isinstance(storage, LocalStorage) else map_ahead(state, entries, _REQUESTS)


def _of_manifest(listing: Listing, root: Path, splitting: Splitting, cache: Cache) -> Source:
    where = str(listing.about["root"])
    storage: Storage = RemoteStorage(where, cache=cache) if is_url(where) else LocalStorage(root / where)
    if isinstance(storage, LocalStorage) and not storage.root.is_dir():
        raise BigrError(
            f"{listing.path} is the manifest of {where}, which does not exist; put the files there, or write "
            "another manifest"
        )
    if "split" not in listing.table.column_names:
        return ImageFolder(storage, listing)
    columns = listing.table.select(["file", "split"]).to_pydict()
    splits = {name.decode(): split for name, split in zip(columns["file"], columns["split"], strict=True)}
    return _files(storage, list(splits), splitting, listing.about["classes"], splits)
