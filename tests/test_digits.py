"""The embedded data set: what the stage dataset writes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bigr.data.embedded.digits import write_digits


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "digits"
    assert write_digits(folder, 16, 360) == {"train": 1437, "val": 360}
    return folder


def test_every_digit_is_in_one_split_and_in_its_class(digits: Path) -> None:
    names = listing(digits)
    assert sum(name.startswith("train/") for name in names) == 1437
    assert sum(name.startswith("val/") for name in names) == 360
    label_of = {int(Path(name).stem): int(name.split("/")[1]) for name in names}
    assert [label_of[i] for i in range(1797)] == load_digits().target.tolist()


def test_split_is_stratified(digits: Path) -> None:
    totals = np.bincount(load_digits().target)
    held_out = [len(list((digits / "val" / str(label)).iterdir())) for label in range(10)]
    assert np.abs(np.array(held_out) - totals * 360 / 1797).max() < 1


def test_split_and_bytes_are_the_same_every_time(digits: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "again", 16, 360)
    assert listing(tmp_path / "again") == listing(digits)
    assert all((tmp_path / "again" / name).read_bytes() == (digits / name).read_bytes() for name in listing(digits))


def test_pixels_are_the_originals_enlarged_over_the_full_range(digits: Path) -> None:
    path = next(digits.glob("*/*/0000.png"))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), dtype=np.float64)
    assert pixels.shape == (16, 16) and pixels.min() == 0 and pixels.max() > 240
    shrunk = pixels.reshape(8, 2, 8, 2).mean(axis=(1, 3))
    original = load_digits().images[0] * (255 / 16)
    assert np.abs(shrunk - original).mean() < 12


def test_at_eight_pixels_the_originals_come_back_exactly(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", 8, 360)
    with Image.open(next((tmp_path / "digits").glob("*/*/0007.png"))) as image:
        assert np.array_equal(np.asarray(image), (load_digits().images[7] * (255 / 16)).round().astype(np.uint8))


def test_a_failure_leaves_the_old_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digits.stat().st_ino

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("bigr.data.embedded.digits._upsample", fail)
    with pytest.raises(OSError, match="disk full"):
        write_digits(digits, 16, 360)
    assert digits.stat().st_ino == before and len(listing(digits)) == 1797
    assert [path.name for path in digits.parent.iterdir()] == ["digits"]
