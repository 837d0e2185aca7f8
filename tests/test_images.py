"""Any picture becomes upright 8-bit RGB, or a reason in one line."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigr.data.images import ImageError, center_crop, decode, encode_png
from bigr.imaging.pictures import read_mask, read_picture
from bigr.runtime.errors import BigrError
from tests.worlds import bomb, memory_grows_by_less_than

GRADIENT = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = decode(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def colour(seed: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    """A smooth picture, which JPEG and WebP hardly change."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.webp", {"quality": 95}),
        ("a.jpg", {"quality": 98, "subsampling": 0}),
        ("a.JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
    ],
)
def test_rgb_files_of_every_format_are_read(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    image = colour(0)
    found = pixels(saved(image, tmp_path / name, **options))
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 8


def test_a_file_is_told_by_its_content_not_its_name(tmp_path: Path) -> None:
    saved(colour(1), tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(pixels(tmp_path / "a.jpg"), np.asarray(colour(1)))


def test_grey_and_bilevel_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(GRADIENT)
    assert np.array_equal(pixels(saved(grey, tmp_path / "grey.png")), np.repeat(GRADIENT[..., None], 3, axis=2))
    bilevel = pixels(saved(grey.convert("1"), tmp_path / "bilevel.png"))
    assert set(np.unique(bilevel)) == {0, 255}


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = GRADIENT.astype(np.uint16) * 257
    assert np.array_equal(pixels(saved(Image.fromarray(values), tmp_path / "a.png"))[..., 0], GRADIENT)
    values = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], dtype=np.uint16)
    assert pixels(saved(Image.fromarray(values), tmp_path / "b.png"))[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">6H", 0, 32896, 65535, 257, 25700, 51400)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(file)
    assert pixels(tmp_path / "a.png").tolist() == [[[0, 128, 255], [1, 100, 200]]]


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[..., 0] = 200
    rgba[0, 0, 3], rgba[0, 1, 3], rgba[1, :, 3] = 0, 51, 255
    expected = [[255, 255, 255], [244, 204, 204], [200, 0, 0], [200, 0, 0]]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True, "exact": True})):
        found = pixels(saved(Image.fromarray(rgba), tmp_path / name, **options))
        assert np.abs(found.reshape(-1, 3).astype(int) - expected).max() <= 1
    la = Image.fromarray(np.array([[[10, 0], [10, 255]]], dtype=np.uint8), mode="LA")
    assert pixels(saved(la, tmp_path / "la.png"))[0].tolist() == [[255] * 3, [10] * 3]


def test_palettes_with_and_without_transparency_are_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    palette = image.convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = pixels(saved(palette, tmp_path / "opaque.png"))
    assert opaque[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    one_clear = pixels(saved(palette, tmp_path / "one.png", transparency=1))
    assert one_clear[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    alpha_table = pixels(saved(palette, tmp_path / "table.png", transparency=bytes([255, 0, 128])))
    assert alpha_table[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 255]]


def test_a_transparent_grey_is_white(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert pixels(saved(grey, tmp_path / "a.png", transparency=7))[0, :, 0].tolist() == [255, 9]
    deep = Image.fromarray(np.array([[7 * 257, 9 * 257]], dtype=np.uint16))
    assert pixels(saved(deep, tmp_path / "b.png", transparency=7 * 257))[0, :, 0].tolist() == [255, 9]


def test_cmyk_jpeg_has_the_colours_it_was_made_of(tmp_path: Path) -> None:
    image = colour(2)
    found = pixels(saved(image.convert("CMYK"), tmp_path / "a.jpg", quality=98))
    assert np.abs(found.astype(int) - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int, name: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)  # one corner marked, in a picture that is not square
    upright[:8, :8] = 255
    # How a camera held in each of the eight ways stores it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if name == "a.jpg" else {"lossless": True} if name == "a.webp" else {}
    found = pixels(saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / name, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() < 16


def test_a_broken_exif_block_costs_only_the_rotation(tmp_path: Path) -> None:
    saved(colour(3), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert pixels(tmp_path / "a.jpg").shape == (12, 20, 3)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(tmp_path / "a.webp")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("name", "kept"), [("a.jpg", 0.6), ("a.png", 0.6), ("a.webp", 0.6), ("a.png", 0.02)])
def test_a_truncated_file_is_an_error_with_a_reason(tmp_path: Path, name: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError) as error:
        decode(tmp_path / name)
    assert str(error.value) and "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_what_is_no_picture_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    for name in ("empty.jpg", "text.png", "a.tiff"):
        with pytest.raises(ImageError, match="not a JPEG, PNG or WebP image"):
            decode(tmp_path / name)
    (tmp_path / "link.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("link.png", "pipe.png", "missing.png"):
        with pytest.raises(ImageError, match="not a regular file"):
            decode(tmp_path / name)


def test_a_picture_of_fifty_megapixels_is_read(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_000), 1).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (10_000, 5_000)


def test_pillows_limit_of_pixels_does_not_apply(tmp_path: Path) -> None:
    file = saved(Image.new("1", (8, 8)), tmp_path / "a.png").read_bytes()
    header = file[12:16] + struct.pack(">II", 20_000, 20_000) + file[24:29]
    (tmp_path / "a.png").write_bytes(file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:])
    with pytest.raises(ImageError, match="truncated"):  # not "could be decompression bomb DOS attack"
        decode(tmp_path / "a.png", max_pixels=500_000_000)


def test_a_picture_beyond_the_limit_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigr.data.images.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match=r"20×12 pixels; at most 100 are read"):
        decode(saved(colour(0), tmp_path / "a.png"))


def adm_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """guided-diffusion's `center_crop_arr`, written down once more."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("name", ["huge.png", "huge.webp", "text.png"])
def test_a_small_file_that_unfolds_to_a_huge_one_is_an_error_in_bounded_memory(tmp_path: Path, name: str) -> None:
    if name == "huge.png":
        data = bomb()
    elif name == "huge.webp":  # an animation whose canvas is larger than its frames
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        data = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:]).read_bytes()
        assert data[12:16] == b"VP8X"
        data = data[:24] + 2 * (16_000 - 1).to_bytes(3, "little") + data[30:]
    else:  # 400 MB of text
        data = saved(colour(6), tmp_path / name).read_bytes()
        text = b"zTXtComment\0\0" + zlib.compress(bytes(400 << 20), 1)
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        data = data[:33] + chunk + data[33:]
    (tmp_path / name).write_bytes(data)
    assert len(data) < 3e6
    with memory_grows_by_less_than(100e6), pytest.raises(ImageError) as error:
        decode(tmp_path / name, max_pixels=100_000_000)
    assert str(error.value) and "\n" not in str(error.value)
    assert name == "text.png" or "shards.max_pixels" in str(error.value)


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (131, 257), (33, 500), (9, 12), (16, 16), (31, 17)])
def test_crop_is_that_of_adm(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(center_crop(image, 16)), adm_center_crop(image, 16))


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    image = colour(4, (16, 16))
    assert np.array_equal(np.asarray(center_crop(image, 16)), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (1, 1)])
def test_a_strip_is_enlarged_in_bounded_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    resize = Image.Image.resize

    def watched(self: Image.Image, to: tuple[int, int], **options: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, to[0] * to[1])
        return resize(self, to, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert center_crop(Image.new("RGB", size), 64).size == (64, 64)
    assert largest <= 16 * 64 * 64


def test_png_is_lossless() -> None:
    image = colour(5)
    assert np.array_equal(np.asarray(decode(io.BytesIO(encode_png(image)))), np.asarray(image))


@pytest.mark.parametrize("read", [decode, read_picture, lambda path: read_mask(path, (8, 8))])
def test_a_huge_picture_is_an_error_in_bounded_memory_where_no_setting_is_at_hand(tmp_path: Path, read) -> None:
    (tmp_path / "huge.png").write_bytes(bomb())
    with (
        memory_grows_by_less_than(100e6),
        pytest.raises(BigrError, match="20000×20000 pixels; at most 100,000,000"),
    ):
        read(tmp_path / "huge.png")
