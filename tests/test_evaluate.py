"""`bigr evaluate`: two sets of any kind, measured against each other as torch-fidelity would."""

import io
import json
import logging
import re
import shutil
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

from bigr.cli import program
from bigr.data.images import center_crop
from bigr.evaluation.fidelity import distances, extractors, statistics
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig
from bigr.evaluation.fidelity.distances import Fidelity
from bigr.evaluation.fidelity.statistics import Statistics, mean_and_covariance, measure
from bigr.evaluation.imagesets import encoded_images, npz_images
from bigr.evaluation.imagesets.image_sets import open_set
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.interop.folders import save
from bigr.runtime.errors import BigrError
from tests import worlds

# isort: split
import torch_fidelity

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]

OWN = '''\
"""Colours of an image's rows: an extractor that anyone might write."""
import torch, torch_fidelity

class Rows(torch_fidelity.FeatureExtractorBase):
    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("rows",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "rows"

    def forward(self, images):
        return (images.double().mean(3).flatten(1) / 255,)

class Registered(Rows):
    pass

torch_fidelity.register_feature_extractor("registered-rows", Registered)
torch_fidelity_free = 7
'''


class Looked(torch_fidelity.FeatureExtractorBase):
    """Features that are given: an image's first two numbers say which row."""

    def __init__(self, name, features_list, rows: torch.Tensor, **_) -> None:
        super().__init__(name, features_list)
        self.rows = rows

    @staticmethod
    def get_provided_features_list():
        return ("rows",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "rows"

    def forward(self, images):
        number = images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()
        return (self.rows[number],)


torch_fidelity.register_feature_extractor("looked", Looked)


class Numbered(torch.utils.data.Dataset):
    """Images that are nothing but their number."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> torch.Tensor:
        image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        image[0, 0, 0], image[0, 0, 1] = divmod(self.numbers[place], 256)
        return image


@pytest.mark.parametrize(
    ("count", "other", "width"), [(300, 200, 16), (40, 30, 64)], ids=["more images than features", "fewer"]
)
def test_every_figure_of_two_feature_sets_is_torch_fidelitys_own(count: int, other: int, width: int) -> None:
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(count + other, width, generator=draws, dtype=torch.float64)
    rows[count:] = rows[count:] * 1.5 + 0.3
    own = torch_fidelity.calculate_metrics(
        input1=Numbered(range(count)),
        input2=Numbered(range(count, count + other)),
        feature_extractor="looked",
        rows=rows,
        **{"fid": True, "kid": True, "prc": True, "cuda": False, "cache": False, "verbose": False},
        **{"kid_subsets": 5, "kid_subset_size": 20, "rng_seed": 7, "save_cpu_ram": True},
    )
    first, second = (Statistics("looked", "", len(x), *mean_and_covariance(x), x) for x in rows.split([count, other]))
    ours = Fidelity(kid_subsets=5, kid_subset_size=20, neighbours=3, seed=7).compare(first, second)
    assert ours["fd_looked"] == pytest.approx(own["frechet_inception_distance"], abs=1e-6)
    assert ours["kd_looked"] == pytest.approx(own["kernel_inception_distance_mean"], abs=1e-6)
    assert (ours["precision"], ours["recall"]) == (own["precision"], own["recall"])


def test_moments_of_more_images_than_are_kept_are_those_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)) * 3 + 100
    numbers = Numbered(range(1000))
    images = ImageStream(1000, lambda: (numbers[i] for i in range(1000)))
    network = Looked("looked", ["rows"], rows)
    extractor = extractors.Extractor("looked", "", network, "rows", CPU)
    every = measure(extractor, images, 64)
    monkeypatch.setattr(statistics, "KEPT", 300)
    some = measure(extractor, images, 64)
    assert every.features is not None
    assert torch.equal(every.features, rows)
    np.testing.assert_allclose(some.mu, every.mu, rtol=1e-12)
    np.testing.assert_allclose(some.sigma, every.sigma, rtol=1e-9, atol=1e-9)
    assert some.features is not None
    kept = [i for i in range(1000) if any(torch.equal(rows[i], row) for row in some.features)]
    assert len(kept) == len(some.features) == 300
    assert {b - a for a, b in pairwise(kept)} == {3, 4}  # evenly spread


# The command, in a project with digits.


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """uint8 [90, 16, 16, 3]."""
    images = (load_digits().images[:90] / 16 * 255).round().astype(np.uint8)
    return images.repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)


def write_folder(folder: Path, images: np.ndarray, suffix: str = "png", **options) -> Path:
    for number, image in enumerate(images):
        path = folder / f"class {number * 3 // len(images)}" / f"{number:04}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)
    return folder


def write_tar(path: Path, images: np.ndarray, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            with io.BytesIO() as stream:
                Image.fromarray(image).save(stream, format=kind)
                for name, data in ((f"{number:04}.png", stream.getvalue()), (f"{number:04}.cls", b"1")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def made(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder: settings, a classifier, 40 samples, and 50 reference images in every kind of set."""
    root = tmp_path_factory.mktemp("evaluate")
    shutil.copy(ROOT / "params.yaml", root)
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(16, classes=10, channels=8, features=24)).eval()
    with torch.no_grad():
        classifier.neck[0].weight *= 100  # features of a trained one's size
    save(root / "models" / "classifier", classifier)
    samples, reference = digits[:40], digits[40:]
    np.savez(root / "samples.npz", arr_0=samples, arr_1=np.zeros(40, int))
    np.savez(root / "npz.npz", arr_0=reference)
    np.savez_compressed(root / "compressed.npz", arr_0=reference)
    write_folder(root / "folder", reference)
    write_folder(root / "webp", reference, "webp", lossless=True)
    write_tar(root / "tars" / "0.tar", reference[:20])
    write_tar(root / "tars" / "1.tar", reference[20:])
    write_tar(root / "single.tar", reference)
    (root / "rows.py").write_text(OWN)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project of a test's own, and the folder in which it runs."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def run(*words: str) -> Result:
    return CliRunner().invoke(program.app, ["evaluate", *words])


def evaluated(*words: str, classifier: bool = True) -> dict:
    """What `bigr evaluate --json` says."""
    own = ["--weights", "models/classifier"] if classifier else []
    done = run(*words, *own, "--json")
    assert done.exit_code == 0, done.exception or done.output
    return json.loads(done.stdout)


def refused(*words: str) -> str:
    """The one line of a mistake."""
    done = run(*words)
    assert isinstance(done.exception, BigrError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


SAMPLES = ("--samples", "samples.npz")


@pytest.mark.parametrize("kind", ["folder", "webp", "npz.npz", "compressed.npz", "tars", "single.tar"])
def test_the_same_images_give_the_same_figures_in_any_kind_of_set(kind: str, project: Path) -> None:
    expected = evaluated(*SAMPLES, "--reference", "npz.npz")
    assert set(expected["figures"]) == {"fd_classifier", "kd_classifier", "is_classifier", "precision", "recall"}
    assert not expected["missing"]
    found = evaluated(*SAMPLES, "--reference", kind)
    assert found["figures"] == pytest.approx(expected["figures"], rel=1e-9)
    assert found["reference"]["images"] == 50
    turned = evaluated("--samples", kind, "--reference", "samples.npz")["figures"]
    assert turned["fd_classifier"] == pytest.approx(expected["figures"]["fd_classifier"], rel=1e-9)
    assert (turned["precision"], turned["recall"]) == (expected["figures"]["recall"], expected["figures"]["precision"])


def test_shards_of_the_pipeline_are_measured_by_split(project: Path) -> None:
    worlds.write_shards(project, size=16, images=24)
    found = evaluated(*SAMPLES, "--reference", "data/shards")
    assert (found["reference"]["split"], found["reference"]["images"]) == ("train", 24)
    assert evaluated(*SAMPLES, "--reference", "data/shards", "--split", "val")["reference"]["images"] == 8
    both = evaluated("--samples", "data/shards", "--reference", "data/shards")
    assert (both["samples"]["split"], both["samples"]["images"]) == ("val", 8)
    assert "has no split 'test'; it has train, val" in refused(
        "--samples", "folder", "--reference", "data/shards", "--split", "test"
    )


def test_statistics_of_a_file_give_the_figures_of_the_images(project: Path) -> None:
    words = ("--reference", "folder", "--save-statistics", "kept.safetensors")
    expected = evaluated(*SAMPLES, *words)["figures"]
    assert evaluated(*SAMPLES, "--reference", "kept.safetensors")["figures"] == expected
    done = run(*words, "--moments-only", "--weights", "models/classifier")
    assert done.exit_code == 0
    assert set(load_file("kept.safetensors")) == {"mu", "sigma"}
    found = evaluated(*SAMPLES, "--reference", "kept.safetensors")
    assert found["figures"] == {name: expected[name] for name in ("fd_classifier", "is_classifier")}
    assert set(found["missing"]) == {"kd_classifier", "precision", "recall"}
    assert found["missing"]["recall"] == "kept.safetensors holds no features, mean and covariance alone"


def test_two_files_of_statistics_need_no_extractor(project: Path) -> None:
    expected = evaluated(*SAMPLES, "--reference", "folder")["figures"]
    for name, images in (("a", "samples.npz"), ("b", "folder")):
        run("--reference", images, "--save-statistics", f"{name}.safetensors", "--weights", "models/classifier")
    found = evaluated("--samples", "a.safetensors", "--reference", "b.safetensors", classifier=False)
    assert found["figures"] == expected
    run("--reference", "folder", "--save-statistics", "c.safetensors", "--extractor", "rows:Rows")
    line = refused("--samples", "a.safetensors", "--reference", "c.safetensors")
    assert "distances need one extractor for both" in line
    line = refused("--samples", "c.safetensors", "--reference", "folder", "--weights", "models/classifier")
    assert "c.safetensors holds statistics of rows:Rows" in line


def test_a_reference_is_not_extracted_again_until_it_or_the_extractor_changes(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = statistics.measure
    monkeypatch.setattr(
        "bigr.evaluation.fidelity.comparison.measure", lambda *given, name: seen.append(name) or real(*given, name=name)
    )
    first = evaluated(*SAMPLES, "--reference", "folder")
    second = evaluated(*SAMPLES, "--reference", "folder")
    assert seen == ["reference", "samples", "samples"]
    assert (first["reference"]["cached"], second["reference"]["cached"]) == (False, True)
    assert second["figures"] == first["figures"]
    shown = run(*SAMPLES, "--reference", "folder", "--weights", "models/classifier").stdout
    assert "50 images, 16×16, PNG, cached" in shown
    assert evaluated(*SAMPLES, "--reference", "folder", "--size", "16")["reference"]["cached"] is False
    (picture,) = Path("folder").rglob("0007.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    assert evaluated(*SAMPLES, "--reference", "folder")["reference"]["cached"] is False
    assert evaluated(*SAMPLES, "--reference", "folder")["reference"]["cached"] is True
    other = Classifier(ClassifierConfig(16, classes=10, channels=8, features=24)).eval()
    shutil.rmtree("models")
    save(Path("models/classifier"), other)
    assert evaluated(*SAMPLES, "--reference", "folder")["reference"]["cached"] is False


def test_a_damaged_cache_is_measured_again(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = evaluated(*SAMPLES, "--reference", "folder")
    (place,) = Path(".cache/bigr/statistics").iterdir()
    place.write_bytes(place.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        again = evaluated(*SAMPLES, "--reference", "folder")
    assert "it is measured again" in caplog.text
    assert (again["reference"]["cached"], again["figures"]) == (False, first["figures"])
    assert evaluated(*SAMPLES, "--reference", "folder")["reference"]["cached"] is True


def test_a_cache_that_cannot_be_written_costs_no_figures(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(".cache").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert evaluated(*SAMPLES, "--reference", "folder")["figures"]
    assert "folder is not cached" in caplog.text


def test_jpeg_is_told_by_content_and_warned_of_beside_a_lossless_set(project: Path, digits: np.ndarray) -> None:
    write_folder(project / "jpeg", digits[40:], "jpg")
    for number, path in enumerate(sorted(Path("jpeg").rglob("*.jpg"))):
        if number < 20:
            path.rename(path.with_suffix(".png"))
    done = run(*SAMPLES, "--reference", "jpeg", "--weights", "models/classifier")
    line = "JPEG moves the distance: 0 of 40 samples and 50 of 50 reference images are compressed with losses"
    assert f"warning: {line}" in done.stderr
    assert "warning" not in done.stdout
    found = evaluated(*SAMPLES, "--reference", "jpeg")
    assert found["reference"]["formats"] == {"JPEG": 50}
    assert any(text.startswith(line) for text in found["warnings"])
    assert not any("JPEG" in text for text in evaluated("--samples", "jpeg", "--reference", "jpeg")["warnings"])
    assert not any("JPEG" in text for text in evaluated(*SAMPLES, "--reference", "folder")["warnings"])
    write_tar(project / "jpegs.tar", digits[40:], "JPEG")
    assert evaluated(*SAMPLES, "--reference", "jpegs.tar")["reference"]["formats"] == {"JPEG": 50}
    run("--reference", "jpeg", "--save-statistics", "jpeg.safetensors", "--weights", "models/classifier")
    assert any("JPEG" in text for text in evaluated(*SAMPLES, "--reference", "jpeg.safetensors")["warnings"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "PNG"}, "PNG"),
        ({"format": "JPEG"}, "JPEG"),
        ({"format": "WEBP", "lossless": True}, "WebP"),
        ({"format": "WEBP", "lossless": True, "exif": b"Exif\x00\x00VP8 "}, "WebP"),
        ({"format": "WEBP", "lossless": False}, "lossy WebP"),
        ({"format": "WEBP", "lossless": False, "icc_profile": b"VP8L"}, "lossy WebP"),
        (
            {
                "format": "WEBP",
                "lossless": True,
                "save_all": True,
                "append_images": [Image.new("RGB", (16, 16), "red")],
            },
            "WebP",
        ),
    ],
)
def test_how_a_picture_is_stored_is_read_off_its_content(options: dict, told: str, digits: np.ndarray) -> None:
    with io.BytesIO() as stream:
        Image.fromarray(digits[0]).save(stream, **options)
        assert encoded_images.scan([("picture", stream.getvalue())], None).formats == {told: 1}


def test_few_images_are_warned_of(project: Path) -> None:
    text = " ".join(evaluated(*SAMPLES, "--reference", "folder")["warnings"])
    assert "compare it only with that of 40 samples (published results use 50,000)" in text
    assert "a reference of 50 images is small" in text
    assert "same images" in " ".join(evaluated("--samples", "folder", "--reference", "folder")["warnings"])


def test_size_crops_every_image_as_adm_does(project: Path, digits: np.ndarray) -> None:
    large = digits[40:].repeat(3, 1).repeat(2, 2)
    cropped = np.stack([np.asarray(center_crop(Image.fromarray(image), 16)) for image in large])
    np.savez("cropped.npz", arr_0=cropped)
    np.savez("large.npz", arr_0=large)
    write_folder(project / "large", large)
    Image.new("RGB", (40, 17)).save("large/other.png")
    Image.new("RGB", (40, 17)).save("large/another.png")
    assert "--size N crops every image" in refused(*SAMPLES, "--reference", "large", "--weights", "models/classifier")
    for path in Path("large").glob("*.png"):
        path.unlink()
    expected = evaluated(*SAMPLES, "--reference", "cropped.npz")["figures"]
    run("--reference", "large", "--size", "16", "--save-statistics", "x.safetensors", "--weights", "models/classifier")
    for kind in ("large", "large.npz", "x.safetensors"):
        found = evaluated(*SAMPLES, "--reference", kind, "--size", "16")
        assert found["figures"] == pytest.approx(expected, rel=1e-9)
    for kind in ("large", "large.npz"):
        assert evaluated(*SAMPLES, "--reference", kind, "--size", "16")["reference"]["cached"]
        assert "takes 16×16; give --size 16" in refused(*SAMPLES, "--reference", kind, "--weights", "models/classifier")
    assert "--size is 8" in refused(*SAMPLES, "--reference", "x.safetensors", "--size", "8")


def test_a_class_of_ones_own_is_an_extractor(project: Path, digits: np.ndarray) -> None:
    for name in ("rows:Rows", "rows:Registered"):
        found = evaluated(*SAMPLES, "--reference", "folder", "--extractor", name, classifier=False)
        called = name.removeprefix("rows:")
        assert set(found["figures"]) == {f"fd_{called}", f"kd_{called}", "precision", "recall"}
        assert found["missing"] == {f"is_{called}": "there are no class logits of the samples"}
        assert found["extractor"]["name"] == name
    rows = torch.from_numpy(digits).permute(0, 3, 1, 2).double().mean(3).flatten(1) / 255
    first, second = (Statistics("x", "", len(x), *mean_and_covariance(x), x) for x in rows.split([40, 50]))
    given = {"kid_subsets": 20, "kid_subset_size": 300, "neighbours": 3, "seed": 0}
    direct = Fidelity(**given).compare(first, second)
    assert found["figures"]["fd_Registered"] == pytest.approx(direct["fd_x"], abs=1e-9)
    other = evaluated(*SAMPLES, "--reference", "folder", "--extractor", "rows:Rows", classifier=False)
    assert other["reference"]["cached"]
    assert "registered-rows" in refused(*SAMPLES, "--reference", "folder", "--extractor", "nothing")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of Inception's shapes, in a file."""
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        own = extractors.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
        patch.setattr(own, "load_state_dict", lambda self, state: None)
        save_file(extractors.InceptionExtractor("inception", ["2048"], {}).state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_and_adms_reference_with_its_statistics(
    project: Path, inception: Path, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traces(first, second, verbose) -> dict[str, float]:
        """Stands in for a Fréchet distance of 2,048 features, which takes seconds."""
        return {"frechet_inception_distance": abs(np.trace(first["sigma"]) - np.trace(second["sigma"]))}

    monkeypatch.setattr(distances, "fid_statistics_to_metric", traces)
    few = [str(write_folder(project / name, images)) for name, images in (("a", digits[:5]), ("b", digits[40:45]))]
    words = ("--extractor", "inception-v3-compat", "--weights", str(inception))
    sets = ("--samples", few[0], "--reference", few[1])
    found = evaluated(*sets, *words, "--save-statistics", "b.safetensors", classifier=False)
    assert set(found["figures"]) == {"fid", "kid", "precision", "recall"}
    assert found["missing"] == {"isc": "it takes 10 samples at least"}
    kept = load_file("b.safetensors")
    mu, sigma = kept["mu"].numpy(), kept["sigma"].numpy()
    np.savez("moments.npz", mu=mu, sigma=sigma, mu_s=mu[:5], sigma_s=sigma[:5, :5])
    np.savez("whole.npz", arr_0=digits[50:55], mu=mu, sigma=sigma)
    np.savez("others.npz", arr_0=digits[50:55])
    from_moments = evaluated(*sets[:2], "--reference", "moments.npz", *words, classifier=False)
    assert from_moments["figures"] == {"fid": found["figures"]["fid"]}
    assert any("taken on trust" in text for text in from_moments["warnings"])
    whole, others = (
        evaluated(*sets[:2], "--reference", name, *words, classifier=False) for name in ("whole.npz", "others.npz")
    )
    assert whole["figures"]["fid"] == found["figures"]["fid"] != others["figures"]["fid"]
    assert whole["figures"]["kid"] == others["figures"]["kid"] != found["figures"]["kid"]
    line = refused(*SAMPLES, "--reference", "moments.npz", "--weights", "models/classifier")
    assert "moments.npz holds statistics of inception-v3-compat (of unknown weights)" in line
    line = refused(*SAMPLES, "--reference", "b.safetensors", "--weights", "models/classifier")
    assert "choose the same with --extractor and --weights" in line


def test_weights_are_fetched_only_when_told_to(project: Path, inception: Path, monkeypatch) -> None:
    asked = []

    def fetch(url: str, **options) -> dict[str, torch.Tensor]:
        asked.append((url, options["weights_only"], options["check_hash"]))
        return load_file(inception)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    words = (*SAMPLES, "--reference", "folder", "--extractor", "inception-v3-compat")
    line = refused(*words)
    assert "--weights FILE" in line
    assert "--download" in line
    assert "--weights FILE" in refused(*words[:-1], "vgg16")
    assert asked == []
    assert set(extractors.download_inception_weights()) == set(load_file(inception))
    assert asked == [(extractors.feature_extractor_inceptionv3.URL_INCEPTION_V3, True, True)]


def test_code_in_weights_of_torch_fidelitys_extractors_is_not_run(project: Path) -> None:
    Path("vgg.pth").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    words = (*SAMPLES, "--reference", "folder", "--extractor", "vgg16", "--weights", "vgg.pth")
    assert "--extractor vgg16: it cannot be made" in refused(*words)
    assert not Path("ran").exists()


def test_the_classifier_is_trained_on_the_shards_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds.write_shards(project, size=16, images=24)
    text = Path("params.yaml").read_text().replace("classifier_steps: 600", "classifier_steps: 3")
    Path("params.yaml").write_text(text.replace("classifier_batch_size: 128", "classifier_batch_size: 8"))
    first = evaluated(*SAMPLES, "--reference", "folder", classifier=False)
    assert first["extractor"]["name"] == "classifier"
    monkeypatch.setattr(
        "bigr.evaluation.fidelity.classifier.train_on_shards", lambda *_: pytest.fail("it was trained again")
    )
    second = evaluated(*SAMPLES, "--reference", "folder", classifier=False)
    assert (second["extractor"], second["figures"]) == (first["extractor"], first["figures"])


def test_a_damaged_classifier_in_the_cache_is_trained_again_and_none_that_other_code_trained_is_used(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worlds.write_shards(project, size=16, images=24)
    trained: list[int] = []

    def train(*_: object) -> Classifier:
        trained.append(len(trained))
        torch.manual_seed(0)
        return Classifier(ClassifierConfig(16, classes=10, channels=8, features=24)).eval()

    monkeypatch.setattr("bigr.evaluation.fidelity.classifier.train_on_shards", train)
    first = evaluated(*SAMPLES, "--reference", "folder", classifier=False)
    (weights,) = Path(".cache/bigr/classifiers").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert evaluated(*SAMPLES, "--reference", "folder", classifier=False)["figures"] == first["figures"]
    assert "model.safetensors: cannot be read" in caplog.text
    assert evaluated(*SAMPLES, "--reference", "folder", classifier=False)["figures"] == first["figures"]
    assert len(trained) == 2
    changed = project / "classifier.py"
    changed.write_text("# the classifier's code, changed")
    monkeypatch.setattr("bigr.evaluation.fidelity.classifier.__file__", str(changed))
    evaluated(*SAMPLES, "--reference", "folder", classifier=False)
    assert len(trained) == 3
    shutil.rmtree(".cache")
    Path(".cache").write_text("in the way")
    assert evaluated(*SAMPLES, "--reference", "folder", classifier=False)["figures"] == first["figures"]


class Code:
    """Unpickling one touches a file."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_code_in_an_npz_is_not_run_and_large_ones_are_read_in_blocks(
    project: Path, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez("code.npz", arr_0=np.array([Code()], dtype=object))
    np.savez("moments.npz", mu=np.array([Code()], dtype=object), sigma=np.zeros((1, 1)))
    for name in ("code.npz", "moments.npz"):
        assert name in refused(*SAMPLES, "--reference", name, "--weights", "models/classifier")
    assert not Path("ran").exists()
    monkeypatch.setattr(npz_images, "_BLOCK_BYTES", 5000)  # six images and a bit
    assert np.array_equal(np.stack(list(npz_images.images(Path("compressed.npz")))), digits[40:])


def damage(project: Path) -> None:
    (project / "empty").mkdir()
    (project / "text.txt").write_text("not images")
    (project / "broken.npz").write_bytes(b"PK\x03\x04 half of one")
    np.savez(project / "floats.npz", arr_0=np.zeros((4, 16, 16, 3), np.float32))
    np.savez(project / "labels.npz", labels=np.zeros(4))
    save_file({"mu": torch.zeros(2)}, project / "model.safetensors")
    (project / "text.safetensors").write_text("nothing")
    shutil.copytree(project / "folder", project / "halved")
    picture = sorted((project / "halved").rglob("*.png"))[3]
    picture.write_bytes(picture.read_bytes()[:60])
    shutil.copytree(project / "folder", project / "mixed")
    (project / "mixed" / "zzz.png").write_text("no picture at all")
    (project / "cut.tar").write_bytes((project / "single.tar").read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("nowhere", "nowhere: there is no such folder or file"),
        ("empty", "empty: there is no image in it"),
        ("text.txt", "text.txt: not a set of images"),
        ("broken.npz", "broken.npz cannot be read as an .npz file"),
        ("floats.npz", r"floats.npz: arr_0 must be .* got float32 \[4, 16, 16, 3\]"),
        ("labels.npz", "labels.npz holds neither images"),
        ("model.safetensors", "model.safetensors holds no statistics"),
        ("text.safetensors", "text.safetensors cannot be read as statistics"),
        ("halved", r"halved/class 0/0003.png: "),
        ("mixed", "mixed/zzz.png: not a JPEG, PNG or WebP image"),
        ("cut.tar", "cut.tar cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_one_line(reference: str, reason: str, project: Path) -> None:
    damage(project)
    line = refused(*SAMPLES, "--reference", reference, "--weights", "models/classifier")
    assert re.search(reason, line), line


@pytest.mark.parametrize("size", [(), ("--size", "16")], ids=["as they are", "cropped"])
@pytest.mark.parametrize("kind", ["folder", "tar", "shards", "npz"])
def test_an_image_beyond_the_limit_of_pixels_is_not_decoded(
    kind: str, size: tuple[str, ...], project: Path, digits: np.ndarray
) -> None:
    place = {"folder": "huge", "tar": "huge.tar", "shards": "huge", "npz": "huge.npz"}[kind]
    if kind == "npz":
        with zipfile.ZipFile(place, "w") as archive, archive.open("arr_0.npy", "w") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (2, 20_000, 20_000, 3)}
            np.lib.format.write_array_header_1_0(file, header)
    else:
        folder = write_folder(project / "huge", digits[:1]) / "class 0"
        (folder / "1.png").write_bytes(worlds.bomb())
    if kind in ("tar", "shards"):
        tar = project / ("huge.tar" if kind == "tar" else "huge/train-000000.tar")
        with tarfile.open(tar, "w") as stream:
            for path in sorted(folder.iterdir()):
                stream.add(path, path.name)
        if kind == "shards":
            split = {"images": 2, "class_counts": [2], "shards": [{"name": tar.name, "images": 2}]}
            index = {"image_size": 16, "classes": ["a"], "splits": {"train": split}}
            (tar.parent / "index.json").write_text(json.dumps(index))
    with worlds.memory_grows_by_less_than(300e6):
        line = refused(*SAMPLES, "--reference", place, *size, "--weights", "models/classifier")
    assert place in line and "20000×20000 pixels; at most 100,000,000 are read (shards.max_pixels)" in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--reference", "folder"), "nothing to do"),
        (("--reference", "folder", "--save-statistics", "x.pt"), "must end in .safetensors"),
        (("--reference", "folder", "--save-statistics", "params.yaml/x.safetensors"), "params.yaml is not a folder"),
        (
            ("--reference", "folder", "--save-statistics", "models/classifier/model.safetensors"),
            "does not hold statistics",
        ),
        ((*SAMPLES, "--reference", "folder", "--moments-only"), "--moments-only says what --save-statistics keeps"),
        ((*SAMPLES, "--reference", "folder", "--split", "val"), "--split val: folder has no splits; only shards"),
        ((*SAMPLES, "--reference", "folder", "--samples-split", "val"), "--samples-split val: samples.npz has no"),
        ((*SAMPLES, "--reference", "folder", "--extractor", "rows:Nothing"), "rows:Nothing: it cannot be imported"),
        ((*SAMPLES, "--reference", "folder", "--extractor", "absent:X"), "absent:X: it cannot be imported"),
        ((*SAMPLES, "--reference", "folder", "--extractor", "rows:torch_fidelity_free"), "not a class derived from"),
        ((*SAMPLES, "--reference", "folder", "--extractor", "inception"), "or one of classifier, clip-rn101"),
        ((*SAMPLES, "--reference", "folder", "--weights", "models/none"), "models/none"),
        ((*SAMPLES, "--reference", "folder", "--download"), "--download: the classifier"),
        ((*SAMPLES, "--reference", "folder"), "the classifier is trained on data/shards, which is not there"),
        ((*SAMPLES, "--reference", "folder", "--params", "no.yaml"), "no.yaml: no such file"),
    ],
)
def test_options_that_cannot_be_are_one_line(words: tuple[str, ...], reason: str, project: Path) -> None:
    assert reason in refused(*words)


def test_the_table_says_which_way_each_figure_is_better(project: Path) -> None:
    page = run(*SAMPLES, "--reference", "folder", "--weights", "models/classifier").stdout.splitlines()
    assert page[0].split() == ["samples", "samples.npz,", "40", "images,", "16×16,", "array"]
    arrows = {line.split()[0]: line.split()[2] for line in page[4:]}
    assert arrows == {
        "fd_classifier": "↓",
        "kd_classifier": "↓",
        "is_classifier": "↑",
        "precision": "↑",
        "recall": "↑",
    }


def test_pictures_are_found_at_any_depth_in_the_order_of_paths(project: Path, digits: np.ndarray) -> None:
    deep = write_folder(project / "deep" / "a" / "b", digits[:2])
    write_folder(project / "elsewhere", digits[2:4])
    (project / "deep" / "link").symlink_to(project / "elsewhere")
    (deep / "loop").symlink_to(project / "deep")
    write_folder(project / "deep" / ".hidden", digits[4:6])
    (project / "deep" / "notes.txt").write_text("not a picture")
    found = open_set(project / "deep")
    assert found.images is not None
    assert found.count == 4
    expected = torch.from_numpy(digits[:4]).permute(0, 3, 1, 2)
    assert torch.equal(found.images.first(4, 3), expected)
