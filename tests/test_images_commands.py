"""`bigr generate`, `inpaint`, … : pictures in, pictures out; what is wrong is one line, and nothing is written."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bigr
from bigr.cli import image_files, program
from bigr.imaging import trace
from bigr.imaging.frames import GREY, Frame
from bigr.imaging.model import ImageModel
from tests import worlds

SEED0 = {"one-seed0-1.png", "grid-inpaint-seed0.png"}
LOWER_HALF = ("--box", "0,50%,100%,100%")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: untrained models of three classes, pictures of two shapes, masks, and what is no picture."""
    worlds.write_models(tmp_path)
    draws = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name, shape in (("one.png", (8, 8, 3)), ("wide.jpg", (10, 24, 3)), ("more/one.png", (12, 8, 3))):
        Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    mask = np.zeros((8, 8), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "empty.png")
    mask[4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`bigr WORDS…` → its exit status."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["bigr", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            program.main()
        return int(ended.value.code or 0)

    return call


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_generate_names_its_files_by_class_seed_and_variant(run, folder, capsys) -> None:
    assert run("generate", 2, 0, "--seed", 5, "--variants", 2, "--iterations", 2) == 0
    out = folder / "outputs" / "generate"
    names = {f"{label}-seed5-{variant}.png" for label in (2, 0) for variant in (1, 2)}
    assert files(out) == names | {"grid-seed5.png"}
    with Image.open(out / "grid-seed5.png") as grid:  # of two rows of two pictures, and the classes beside them
        assert grid.width > 2 * 160 and grid.height > 2 * 160
        beside = np.asarray(grid.convert("L"))[:, :16]
    assert all((half < 128).any() for half in np.array_split(beside, 2))
    expected = bigr.load().generate([2, 0], seed=5, variants=2, iterations=2)
    assert np.array_equal(np.asarray(Image.open(out / "0-seed5-2.png")), np.asarray(expected[3]))
    assert "4 pictures of 8×8 in" in capsys.readouterr().out


def test_generate_without_a_class_draws_one_picture(run, folder) -> None:
    assert run("generate", "--out", "drawn", "--iterations", 2) == 0
    assert files(folder / "drawn") == {"any-seed0-1.png"}


@pytest.mark.parametrize("where", [("--mask", "mask.png"), LOWER_HALF])
def test_inpainting_paints_where_the_mask_or_the_box_says_and_nowhere_else(where, run, folder) -> None:
    assert run("inpaint", "one.png", *where, "--blend", "none") == 0
    assert files(folder / "outputs" / "inpaint") == SEED0
    before, after = (np.asarray(Image.open(path)) for path in ("one.png", "outputs/inpaint/one-seed0-1.png"))
    assert np.array_equal(before[:4], after[:4])
    assert not np.array_equal(before[4:], after[4:])


def test_a_box_in_per_cent_fits_every_picture_and_each_keeps_its_size(run, folder) -> None:
    assert run("edit", "one.png", "wide.jpg", "more", *LOWER_HALF, "--label", 2, "--iterations", 2) == 0
    out = folder / "outputs" / "edit"
    sizes = {path.name: Image.open(path).size for path in out.glob("*-1.png")}
    assert sizes == {"one-2-seed0-1.png": (8, 8), "wide-2-seed0-1.png": (24, 10), "one-2-2-seed0-1.png": (8, 12)}


def test_outpainting_adds_margins_or_keeps_the_size_around_a_box(run, folder) -> None:
    assert run("outpaint", "wide.jpg", "--margins", "2,0,50%,1", "--iterations", 2) == 0
    assert Image.open("outputs/outpaint/wide-seed0-1.png").size == (24 + 2 + 12, 10 + 1)
    assert run("outpaint", "one.png", "--box", "2,2,6,6", "--blend", "none", "--iterations", 2) == 0
    before, after = (np.asarray(Image.open(path)) for path in ("one.png", "outputs/outpaint/one-seed0-1.png"))
    assert np.array_equal(before[2:6, 2:6], after[2:6, 2:6])
    assert not np.array_equal(before, after)


def test_interpolation_is_pictures_a_strip_and_an_animation_there_and_back(run, folder) -> None:
    assert run("interpolate", 0, 1, "--frames", 4, "--iterations", 2) == 0
    out = folder / "outputs" / "interpolate"
    frames = {f"0-to-1-seed0-1-frame{place}.png" for place in range(1, 5)}
    assert files(out) == frames | {"0-to-1-seed0-1-strip.png", "0-to-1-seed0-1.gif"}
    pages, times = trace.there_and_back([Image.open(out / name) for name in sorted(frames)])
    assert len(pages) == len(times) == 6
    assert Image.open(out / "0-to-1-seed0-1.gif").n_frames > 1


def test_enrichment_and_reconstruction_are_of_the_models_size(run, folder) -> None:
    assert run("enrich", "wide.jpg", "--rounds", 2, "--iterations", 2, "--trace") == 0
    assert run("reconstruct", "wide.jpg") == 0
    for path in ("outputs/enrich/wide-seed0-1.png", "outputs/reconstruct/wide-reconstruction.png"):
        assert Image.open(path).size == (8, 8)
    assert (folder / "outputs/enrich/wide-seed0-1-trace.gif").is_file()


def test_features_are_arrays_with_the_names_of_their_files(run, folder) -> None:
    assert run("features", "one.png", "more", "--layer", 1) == 0
    with np.load("outputs/features/features.npz", allow_pickle=False) as found:
        assert found["files"].tolist() == ["one.png", "more/one.png"]
        assert found["features"].dtype == np.float32
        expected = bigr.load().features(["one.png", "more/one.png"], 1).numpy()
        assert np.array_equal(found["features"], expected)


def test_the_pictures_most_alike_to_each_are_named_and_not_itself(run, folder, capsys) -> None:
    for place in range(3):  # the same picture, more often than it is asked for
        (folder / "more" / f"same{place}.png").write_bytes((folder / "one.png").read_bytes())
    assert run("features", "one.png", "wide.jpg", "more", "--nearest", 2) == 0
    assert "models/features" in capsys.readouterr().out
    with np.load("outputs/features/features.npz", allow_pickle=False) as found:
        files, nearest, similarity = found["files"].tolist(), found["nearest"], found["similarity"]
    assert nearest.shape == similarity.shape == (6, 2) and similarity.dtype == np.float32
    assert not (nearest == np.arange(6)[:, None]).any()
    for place, name in enumerate(files):
        if name != "wide.jpg" and name != "more/one.png":
            assert similarity[place].tolist() == pytest.approx([1, 1], abs=1e-4), name
            assert {files[other] for other in nearest[place]} <= {"one.png", *(f"more/same{n}.png" for n in range(3))}
    assert run("features", "one.png", "more/one.png", "--nearest", 9) == 0
    with np.load("outputs/features/features.npz", allow_pickle=False) as found:
        assert found["nearest"].tolist() == [[1], [0]]
    assert run("features", "one.png", "--nearest", 1) == 2


def test_a_trace_is_written_for_each_picture_also_where_they_are_drawn_in_batches(run, folder) -> None:
    assert run("inpaint", "one.png", *LOWER_HALF, "--variants", 18, "--iterations", 4, "--trace") == 0
    traces = files(folder / "outputs" / "inpaint") - SEED0
    assert {name for name in traces if "trace" in name} == {
        f"one-seed0-{place}-trace.{kind}" for place in range(1, 19) for kind in ("png", "gif")
    }


def test_a_long_pictures_windows_have_a_trace_each(run, folder) -> None:
    assert run("outpaint", "wide.jpg", "--box", "0,0,1,10", "--iterations", 2, "--trace") == 0
    names = files(folder / "outputs" / "outpaint")
    assert {"wide-seed0-1-window1-trace.png", "wide-seed0-1-window2-trace.gif"} <= names


def frames(*decided: set[int], grid: int = 2) -> list[Frame]:
    """Frames of one picture whose tokens are decided in the sets named, black on grey."""
    left, found = set.union(*decided), []
    for number, now in enumerate(decided, start=1):
        entropy = np.array([0.5 if token in left else np.nan for token in range(grid * grid)]).reshape(grid, grid)
        left = left - now
        grey = np.array([token in left for token in range(grid * grid)]).reshape(grid, grid).repeat(4, 0).repeat(4, 1)
        pixels = np.where(grey[..., None], np.uint8(GREY), np.zeros((8, 8, 3), np.uint8))
        found.append(Frame(number, len(decided), [Image.fromarray(pixels)], [entropy.astype(np.float32)]))
    return found


def test_the_trace_tells_which_iteration_decided_each_token() -> None:
    drawn = frames({3}, {0, 1})
    assert trace._decided(drawn, 0).tolist() == [[1, 1], [-1, 0]]
    assert trace._now(drawn[0], 0).tolist() == [[False, False], [False, True]]
    assert [len(part) for part in trace.episodes(drawn + drawn)] == [2, 2]
    pages, times = trace.animation(drawn)
    assert len(pages) == len(times) == 2
    assert len({page.size for page in pages}) == 1


def test_names_stay_in_the_folder_and_apart() -> None:
    names = image_files.names_of(["../up", "a/b", "a_b", "A_B", "..", "ü" * 300, "tench, Tinca"])
    assert names[:4] == ["up", "a_b", "a_b-2", "A_B-3"]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(Path(name).name == name and len(name.encode()) < 200 for name in names)


def test_many_files_of_one_name_are_named_quickly_and_apart() -> None:
    names = image_files.names_of(["one"] * 20_000)
    assert len(set(names)) == 20_000 and names[-1] == "one-20000"


def test_two_long_names_and_what_is_appended_fit_into_a_files_name(run, folder) -> None:
    long = "ü" * 110
    (folder / "one.png").rename(folder / f"{long}.png")
    name = image_files.names_of([long])[0]
    temporary = f".{name}-{name}-seed{2**63 - 1}-1024-window256-trace.0123abcd.png"
    assert len(temporary.encode()) <= 255
    assert run("inpaint", f"{long}.png", *LOWER_HALF, "--iterations", 2) == 0


def test_grids_keep_no_full_picture_of_each_file(run, folder, monkeypatch) -> None:
    Image.new("RGB", (900, 900)).save("large.png")
    kept = []
    grid = image_files.Folder.grid
    monkeypatch.setattr(image_files.Folder, "grid", lambda *given: kept.append(given[2]) or grid(*given))
    assert run("inpaint", "large.png", *LOWER_HALF, "--iterations", 2) == 0
    assert max(max(picture.size) for picture in kept[0][0]) <= 320


WRONG = [
    (("generate", "5"), "label must be a class of the model, got '5'; the 3 classes: 0, 1, 2"),
    (("edit", "one.png", *LOWER_HALF, "--label", "x"), "--label must be a class of the model, got 'x'"),
    (("generate", "0", "--iterations", "99"), "--iterations must be a whole number from 1 to 16, got 99"),
    (("generate", "0", "--steps", "1"), "--steps must be a whole number from 2 to 16, got 1"),
    (("generate", "0", "--steps", "9,1"), "--steps must be a whole number from 2 to 16, got 1"),
    (("generate", "0", "--steps", "9:4"), "--steps 9:4: give one number, or those of the first and the last iteration"),
    (("generate", "0", "--variants", "0"), "--variants must be a whole number from 1 to 1024, got 0"),
    (("generate", "0", "--seed", "-1"), "--seed must be a whole number from 0 to 9223372036854775807, got -1"),
    (("generate", "0", "--guidance", "-1"), "--guidance must be a number, 0 or more, got -1.0"),
    (("generate", "0", "--model", "nothing"), "nothing: no model there"),
    (("generate", "0", "--out", "one.png/x"), "--out one.png/x: one.png is a file; name a folder"),
    (("interpolate", "0", "1", "--frames", "1"), "--frames must be a whole number from 2 to 1024, got 1"),
    (("inpaint", "nothing.png", *LOWER_HALF), "nothing.png: no such file or folder"),
    (("inpaint", "a" * 300 + ".png", *LOWER_HALF), "a" * 300 + ".png: no such file or folder"),
    (("inpaint", "one.png", "text.png", *LOWER_HALF), "text.png: not a JPEG, PNG or WebP image"),
    (("inpaint", "one.png"), "say where to paint: give either --mask FILE or --box L,T,R,B"),
    (("inpaint", "one.png", "--mask", "empty.png"), "--mask empty.png: nothing is marked"),
    (("inpaint", "one.png", "--mask", "nothing.png"), "--mask nothing.png: no such file"),
    (("inpaint", "one.png", "--box", "1,2,3"), "--box 1,2,3: give left,top,right,bottom"),
    (("inpaint", "wide.jpg", "one.png", "--box", "0,0,9,9"), "--box 0,0,9,9 does not fit one.png, 8×8 pixels"),
    (("outpaint", "one.png", "--margins", "0"), "--margins 0: nothing would be added"),
    (("outpaint", "one.png"), "give either --margins (how much to add) or --box (the part to keep)"),
    (("enrich", "one.png", "--rounds", "9"), "--rounds must be a whole number from 1 to 4, got 9"),
    (("features", "one.png", "--layer", "9"), "--layer must be a whole number from 1 to 2, got 9"),
    (("features", "text.png"), "text.png: not a JPEG, PNG or WebP image"),
]


@pytest.mark.parametrize(("words", "reason"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_one_line_and_nothing_is_written(words, reason, run, folder, capsys) -> None:
    assert run(*words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(reason)
    assert not (folder / "outputs").exists()


def test_a_picture_that_is_read_is_never_overwritten(run, folder, capsys) -> None:
    content = (folder / "one.png").read_bytes()
    (folder / "one-reconstruction.png").write_bytes(content)
    assert run("reconstruct", "one.png", "one-reconstruction.png", "--out", ".") == 2
    assert "one of the files that are read; name another folder" in capsys.readouterr().err
    assert (folder / "one-reconstruction.png").read_bytes() == content


def test_an_interruption_is_one_line_and_leaves_no_half_file(run, folder, monkeypatch, capsys) -> None:
    def interrupted(*about: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageModel, "generate", interrupted)
    assert run("generate", "0") == 130
    assert capsys.readouterr().err == "interrupted; pictures that were finished are in outputs/generate\n"
    assert not (folder / "outputs").exists()


def test_enrichment_is_there_for_a_grid_without_whole_cells(run, folder) -> None:
    worlds.write_models(folder, grid=7)
    assert run("enrich", "wide.jpg", "one.png", "--variants", 2, "--iterations", 2, "--trace") == 0
    for path in ("outputs/enrich/wide-seed0-2.png", "outputs/enrich/one-seed0-1.png"):
        assert Image.open(folder / path).size == (14, 14)
    assert (folder / "outputs/enrich/one-seed0-1-trace.gif").is_file()
