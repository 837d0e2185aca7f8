"""Files of tensors from elsewhere: read exactly, never unpickled, and refused in one line where they are not whole."""

import os
import pickle
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bigr.interop.published.tensor_files import open_tensors
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Settings:
    """A class of the file's author."""

    def __init__(self) -> None:
        self.values = {1, 2}


def views():
    x = torch.randn(5, 6)
    return {
        "whole": x,
        "part": x[1:4, ::2],
        "turned": x.t(),
        "number": torch.tensor(3.5),
        "nothing": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "repeated": torch.randn(3, 1).expand(3, 1),
        "counts": torch.arange(4),
        "flags": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_every_layout_are_read_exactly(tmp_path, protocol):
    expected = views()
    torch.save({"ema": OrderedDict(expected)}, tmp_path / "a.pt", pickle_protocol=protocol)
    found = open_tensors(tmp_path / "a.pt").tensors
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape
        assert torch.equal(tensor.read(), expected[name]), name
        assert tensor.read().is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_read_as_float32(tmp_path, dtype):
    x = torch.randn(4, 3).to(dtype)
    torch.save({"a": x, "b": x.t()}, tmp_path / "a.pt")
    save_file({"a": x, "b": x.t().contiguous()}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        found = open_tensors(path).tensors
        assert torch.equal(found["a"].read(), x.float())
        assert torch.equal(found["b"].read(), x.t().float())


def test_a_file_from_a_big_endian_machine_is_read(tmp_path):
    torch.save({"a": torch.tensor([1.5, -2.0])}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            data = b"big" if name.endswith("byteorder") else data
            if name.endswith("data/0"):
                data = b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4))
            target.writestr(name, data)  # nor does this writer align anything
    assert open_tensors(tmp_path / "b.pt").tensors["a"].read().tolist() == [1.5, -2.0]


def test_checksums_may_be_left_out(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_tensors(tmp_path / "a.pt").tensors["a"].read().tolist() == [1, 1, 1]


def test_reading_leaves_the_file_as_it_is(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    open_tensors(tmp_path / "a.pt").tensors["a"].read().zero_()
    assert (tmp_path / "a.pt").read_bytes() == before


def test_nothing_in_a_file_is_executed(tmp_path):
    trap = tmp_path / "executed"
    content = {"args": Trap(trap), "more": [Settings(), {"deep": (Path("x"),)}], "ema": {"a": torch.ones(2)}}
    torch.save(content, tmp_path / "a.pt")
    file = open_tensors(tmp_path / "a.pt")
    assert file.tensors["a"].read().tolist() == [1, 1]
    assert file.entries == ("args", "more", "ema")
    assert not trap.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert trap.exists()  # the trap would have worked


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_other_classes_are_passed_over_in_every_pickle_protocol(tmp_path, protocol):
    """Objects made by a call, by a class with state, subclasses of dict, list and set, and classes themselves."""
    others = [Settings(), Namespace(lr=1.0), Counter("ab"), defaultdict(list, a=[1]), deque([1]), Path("x"), Settings]
    others += [{1, 2}, frozenset({3}), b"x", 2**70, torch.float16, torch.Size([2]), nn.Linear(2, 2), Fraction(1, 2)]
    content = {"ema": {"a": torch.ones(2)}, "others": others, **{f"{i}": other for i, other in enumerate(others)}}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    file = open_tensors(tmp_path / "a.pt")
    assert file.tensors["a"].read().tolist() == [1, 1]
    assert file.entries == tuple(content)


@pytest.mark.parametrize("state", [{"dtype": 1}, (None, {"__new__": str, "__setstate__": 1})])
def test_a_file_changes_no_class_of_the_program(tmp_path, state):
    """A pickle can set attributes of what it names: here of the function that rebuilds tensors."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")

    def poisoned(data: bytes) -> bytes:
        assert data.startswith(b"\x80\x02}")
        return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + pickle.dumps(state, 2)[2:-1] + b"b0" + data[2:]

    rezipped(tmp_path / "a.pt", tmp_path / "b.pt", change=poisoned)
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    for path in (tmp_path / "b.pt", tmp_path / "a.pt"):
        assert open_tensors(path).tensors["a"].read().tolist() == [1, 1]
    assert vars(torch._utils._rebuild_tensor_v2) == before


def test_the_tensors_at_the_top_count_where_there_is_no_entry(tmp_path):
    torch.save({"a": torch.ones(1), "step": 5}, tmp_path / "a.pt")
    assert list(open_tensors(tmp_path / "a.pt").tensors) == ["a"]


def test_files_are_written_as_safetensors_writes_them_and_the_same_each_time(tmp_path):
    dtypes = [torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool]
    tensors = {f'a "{i}" é': torch.arange(6).to(dtype).view(2, 3) for i, dtype in enumerate(dtypes)}
    tensors |= {"b": torch.tensor(1.0), "c": torch.zeros(0, 2)}
    for metadata in ({}, {"key": 'a "text"\né'}):
        save_file(tensors, tmp_path / "theirs", metadata)
        write_tensors(tmp_path / "ours", dict(reversed(tensors.items())), metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors(tmp_path / "a", {"t": views()["turned"]}, {"one": "1", "two": "2"})
    write_tensors(tmp_path / "b", open_tensors(tmp_path / "a").tensors, {"two": "2", "one": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def rezipped(source: Path, target: Path, compression=zipfile.ZIP_STORED, drop=(), change=None):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith(tuple(drop)):
                data = old.read(name)
                kind = compression if "/data/" in name else zipfile.ZIP_STORED
                new.writestr(name, change(data) if change and name.endswith("pkl") else data, kind)


def unreadable(path: Path) -> str:
    with pytest.raises(BigrError) as raised:
        open_tensors(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, fraction, suffix):
    path = tmp_path / f"a{suffix}"
    tensors = {"a": torch.randn(100, 100)}
    torch.save(tensors, path) if suffix == ".pt" else save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    assert "whole" in unreadable(path) or "download" in unreadable(path)


def test_what_is_no_file_of_tensors_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    unreadable(path)
    unreadable(tmp_path)
    path.write_text("<html>not found</html>")
    assert "neither a checkpoint of torch" in unreadable(path)
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert "old format" in unreadable(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    assert "no data.pkl" in unreadable(path)
    torch.save([torch.ones(1)], path)
    assert "no dict of tensors" in unreadable(path)
    torch.save({"model": {"a": torch.ones(1)}, "args": Settings()}, path)
    assert "it has: model, args" in unreadable(path)


def test_a_damaged_zip_names_what_is_damaged(tmp_path):
    source, path = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"first": torch.ones(2), "second": torch.randn(50)}, source)
    rezipped(source, path, zipfile.ZIP_DEFLATED)
    assert "tensor first is compressed" in unreadable(path)
    rezipped(source, path, drop=["data/1"])
    assert "tensor second has no data" in unreadable(path)
    rezipped(source, path, change=lambda data: data[:-40])
    assert "list of tensors cannot be read" in unreadable(path)
    rezipped(source, path, change=lambda data: data.replace(b"K\x32", b"K\x33"))  # 51 numbers of 50
    assert "tensor second needs 204 bytes of data/1, which has 200" in unreadable(path)
    torch.save({"turned": torch.randn(7, 7).t()}, source)
    rezipped(source, path, change=lambda data: data.replace(b"K\x01K\x07\x86", b"K\x01K\x09\x86"))  # rows 9 apart
    assert "tensor turned needs 244 bytes of data/0, which has 196" in unreadable(path)
    torch.save({"first": torch.ones(2), "second": torch.randn(50)}, source)
    rezipped(source, path, change=lambda data: data.replace(b"FloatStorage", b"QUInt8Storage"))
    assert "tensor first is of type QUInt8" in unreadable(path)
