"""Texts as conditions: what encoders read, how texts are stored, and how the backbone takes them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.data.stored_files import StoredFile
from bigr.data.texts import Texts, text_counts, write_text_index, write_texts
from bigr.interop.folders import save
from bigr.models.masked.backbone import Backbone, BackboneConfig, rope_tables
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.masked.text_conditions import TextConditions
from bigr.models.text_shape import text_shape
from bigr.runtime import torchvision_import  # noqa: F401 - before transformers, which imports torchvision
from bigr.runtime.errors import BigrError
from bigr.sampling.editing import interpolate_codes
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.text.byte_pairs import BytePairs
from bigr.text.encoder import as_given, cleaned, encoder_hash
from bigr.text.encoder_folder import encoder_of, load_encoder
from bigr.text.frozen import FrozenEncoder
from bigr.text.prompts import read_prompts
from tests.text_encoders import CAPTIONS, write_frozen

CPU = torch.device("cpu")
P, GRID, BITS, DIM = 6, 3, 8, 32
LEARNED = {"text_tokens": P, "text_vocabulary": 20, "text_layers": 1, "text_heads": 2}
FEATURES = {"text_tokens": P, "text_width": 12, "text_pooled": True}


def backbone(**changes: object) -> Backbone:
    """An untrained backbone whose blocks do something: the modulation's linear is not zero."""
    torch.manual_seed(0)
    shape = BackboneConfig(BITS, GRID, 3, DIM, 2, 2, ffn_multiple_of=32, dropout=0.0, init_std=0.2)
    found = Backbone(replace(shape, **changes)).eval()
    torch.nn.init.normal_(found.adaLN[1].weight, std=0.3)
    return found


def texts(lengths: list[int], shape: dict[str, object]) -> Tensor:
    """Texts of these lengths, as the model takes them."""
    draws = torch.Generator().manual_seed(1)
    if "text_width" not in shape:
        return torch.stack([torch.arange(1, P + 1) * (torch.arange(P) < length) for length in lengths])
    rows = torch.zeros(len(lengths), P + 1, 12)
    for row, length in zip(rows, lengths, strict=True):
        if length:
            row[: length + 1] = torch.randn(length + 1, 12, generator=draws)
    return rows


def bits(count: int) -> Tensor:
    return torch.randint(0, 2, (count, GRID**2, BITS), generator=torch.Generator().manual_seed(2)).float()


@pytest.mark.parametrize("shape", [LEARNED, FEATURES], ids=["learned", "frozen"])
def test_what_is_behind_the_end_of_a_text_is_attended_to_by_nothing(shape: dict[str, object]) -> None:
    model = backbone(**shape)
    masked = torch.zeros(1, GRID**2, dtype=torch.bool)
    with torch.no_grad():
        condition = model.condition(texts([4], shape))
        assert condition.shape == (1, 1 + P, DIM)
        assert (condition[0, :5] != 0).any(-1).all() and (condition[0, 5:] == 0).all()
        whole = model(bits(1), condition, masked)
        model.rope_cos, model.rope_sin = rope_tables(replace(model.config, text_tokens=4))  # a prefix of 4 tokens
        short = model(bits(1), condition[:, :5], masked)
    torch.testing.assert_close(whole, short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [LEARNED, FEATURES], ids=["learned", "frozen"])
def test_no_text_is_learned_and_each_row_is_by_itself(shape: dict[str, object]) -> None:
    model = backbone(**shape)
    condition = model.condition(texts([3, 0, 6, 0], shape))
    assert torch.equal(condition[1, 1:], model.text.nothing) and torch.equal(condition[1], condition[3])
    assert torch.equal(condition[1:2], model.condition(model.unconditional(1)))
    torch.testing.assert_close(condition[:1], model.condition(texts([3], shape)), rtol=1e-4, atol=1e-6)
    condition.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.text.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.text.parameters())


def test_the_vector_of_the_whole_text_is_the_encoders_or_the_mean_of_what_was_read() -> None:
    torch.manual_seed(0)
    options = {"tokens": P, "width": 12, "vocabulary": 0, "layers": 0, "heads": 0}
    given = texts([2], FEATURES)

    def expected(conditions: TextConditions, read: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(conditions.to_vector(read), (DIM,))

    with_pooled = TextConditions(DIM, pooled=True, **options)
    with_pooled.init_weights(0.1)
    assert torch.allclose(with_pooled(given)[0, 0], expected(with_pooled, given[0, 0]), atol=1e-6)
    without = TextConditions(DIM, pooled=False, **options)
    without.init_weights(0.1)
    found = without(given[:, 1:])[0]
    assert torch.allclose(found[0], expected(without, found[1:3].mean(0)), atol=1e-6)

    learned = TextConditions(DIM, pooled=False, **options | {"vocabulary": 9, "layers": 2, "heads": 2})
    learned.init_weights(0.1)
    found = learned(torch.tensor([[5, 7, 7] + [0] * (P - 3)]))[0]
    assert torch.allclose(found[0], expected(learned, found[1:4].mean(0)), atol=1e-5)


def untrained_encoder() -> TextConditions:
    """A learned encoder, with weights as in a backbone."""
    torch.manual_seed(0)
    learned = TextConditions(64, tokens=8, width=0, pooled=False, vocabulary=50, layers=2, heads=4)
    for module in learned.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=64**-0.5)
    learned.init_weights(64**-0.5)
    return learned


def test_at_first_a_word_stays_what_it_is_in_the_learned_encoder() -> None:
    """Each place is nearest to its own word's embedding, of all words."""
    learned = untrained_encoder()
    words = torch.arange(1, 49).view(6, 8)
    places = learned(words)[:, 1:].flatten(0, 1)
    near = F.normalize(places, dim=1) @ F.normalize(learned.embedding.weight, dim=1).T
    assert (near.argmax(1) == words.flatten()).float().mean() > 0.9


def test_the_learned_encoder_reads_the_order_of_words_from_the_first_step_on() -> None:
    """A word stands out by the word before it more than by one far away; exchanging two words is seen."""
    learned = untrained_encoder()
    one = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]])
    before, far, exchanged = one.clone(), one.clone(), one[:, [0, 5, 2, 3, 4, 1, 6, 7]]
    before[0, 1], far[0, 6] = 9, 9
    read = learned(one)[0]

    def moved(other: torch.Tensor, place: int) -> float:
        return (learned(other)[0, 1 + place] - read[1 + place]).norm().item() / read[1 + place].norm().item()

    assert moved(before, 2) > 3 * moved(far, 2) and moved(before, 2) > 0.03
    assert moved(exchanged, 2) > 0.03  # the same words
    assert moved(exchanged, -1) > 0.03  # so is the vector of the whole text another
    with torch.no_grad():  # torch's fast path of inference must not take the bias for a mask
        torch.testing.assert_close(learned.eval()(one)[0], read, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [LEARNED, FEATURES], ids=["learned", "frozen"])
def test_a_model_of_texts_is_trained_sampled_guided_and_interpolated(shape: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(BITS, GRID, 3, DIM, 2, 2, 32, 1, ffn_multiple_of=32, **shape))
    given = texts([3, 0, 6], shape)
    masked = torch.tensor([[0, 4]] * 3)
    loss = model.loss(bits(3), given, masked, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    sampling = Sampling(iterations=3, diffusion_steps=2, guidance_scale=3.0)
    codes = sample_codes(model, given, sampling, [0, 1, 2])
    assert torch.equal(sample_codes(model, given[1:2], sampling, [1]), codes[1:2])  # others beside it change nothing
    ends = interpolate_codes(model, given[[0, 0]], given[[2, 2]], torch.tensor([1.0, 0.0]), sampling, [0, 2])
    assert torch.equal(ends, codes[[0, 2]])
    assert len(model.features(bits(2))) == 2


def test_the_shape_of_a_class_model_has_no_text_whatever_the_section_says() -> None:
    class Section:
        text_layers, text_heads = 2, 4

        def __getattr__(self, name: str) -> int:
            return 64

    plain = BiGRConfig.of(Section(), code_bits=8, grid=3, num_classes=3)
    assert (plain.text_layers, plain.text_heads, plain.text_tokens, text_shape(vars(plain))) == (0, 0, 0, ())
    learned = BiGRConfig.of(
        Section(), code_bits=8, grid=3, num_classes=3, text={"text_tokens": 5, "text_vocabulary": 9}
    )
    assert (learned.text_layers, learned.text_heads, text_shape(vars(learned))) == (2, 4, (5,))
    frozen = BiGRConfig.of(Section(), code_bits=8, grid=3, num_classes=3, text=FEATURES)
    assert (frozen.text_layers, text_shape(vars(frozen))) == (0, (P + 1, 12))


# Byte pairs


@pytest.fixture(scope="module")
def byte_pairs() -> BytePairs:
    return BytePairs.learned(CAPTIONS, 280, P)


def test_byte_pairs_read_any_text_and_nothing_is_no_text(byte_pairs: BytePairs) -> None:
    blank = ["", "  \n\t ", "\x00\x1b", "\u2028"]
    assert [len(array) for array in byte_pairs.read(blank)] == [0] * 4
    odd = ["яблоко", "赤い円", "a\x00red\x07circle", "🙂", "\ud800", "A RED CIRCLE"]
    found = byte_pairs.read(odd)
    assert all(0 < len(array) <= P and array.min() > 0 and array.dtype == np.int32 for array in found)
    assert np.array_equal(found[2], byte_pairs.read(["a red circle"])[0]) and np.array_equal(found[5], found[2])
    given = as_given(byte_pairs, ["a red circle", ""])
    assert given.shape == (2, P) and given.dtype == torch.int64 and (given[1] == 0).all()


def test_what_is_longer_is_cut_and_counted() -> None:
    encoder = BytePairs.learned(CAPTIONS, 280, P)
    long = encoder.read(["z" * 10_000, "a"])
    assert [len(array) for array in long] == [P, 1] and encoder.cut == 1


def test_byte_pairs_are_the_same_every_time_and_after_a_load(byte_pairs: BytePairs, tmp_path: Path) -> None:
    again = BytePairs.learned(CAPTIONS, 280, P)
    for encoder, name in ((byte_pairs, "a"), (again, "b")):
        (tmp_path / name).mkdir()
        encoder.save(tmp_path / name)
    assert encoder_hash(tmp_path / "a") == encoder_hash(tmp_path / "b")
    loaded = load_encoder(tmp_path / "a", CPU)
    assert loaded.shape == byte_pairs.shape == {"text_tokens": P, "text_vocabulary": 280}
    assert all(map(np.array_equal, loaded.read(CAPTIONS), byte_pairs.read(CAPTIONS)))
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(BigrError, match=r"tokenizer.json cannot be read \(it is not that of config.json\); run the st"):
        load_encoder(tmp_path / "a", CPU)
    with pytest.raises(BigrError, match=r"config.json is missing; run the stage text first"):
        load_encoder(tmp_path / "c", CPU)


@pytest.mark.parametrize("text", ["a  b", " a b ", "a\tb", "a\u0000b"])
def test_a_text_is_cleaned(text: str) -> None:
    assert cleaned(text) == "a b"
    assert cleaned("e\u0301") == "é"


# Frozen encoders: those of tests/text_encoders.py.


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frozen(tmp_path_factory.mktemp("clip"), "clip")


def test_clip_gives_its_vector_and_its_penultimate_layer(clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPTextModel

    encoder = FrozenEncoder.open("clip", str(clip), 10, CPU)
    assert encoder.shape == {"text_tokens": 10, "text_width": 16, "text_pooled": True}
    captions = [
        "a small red circle",
        "",
        "a red circle above a blue square",
        "a large red circle above a small blue square",
    ]
    found = encoder.read(captions)
    assert [array.shape for array in found] == [(1 + 6, 16), (0, 16), (1 + 9, 16), (1 + 10, 16)]
    assert encoder.cut == 1 and found[0].dtype == np.float16
    model = CLIPTextModel.from_pretrained(clip).eval()
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(clip)(captions[0], return_tensors="pt")
        output = model(input_ids=batch["input_ids"], output_hidden_states=True)
    expected = torch.cat([output.pooler_output, output.hidden_states[-2][0]])
    assert np.allclose(found[0], expected.numpy(), atol=2e-3)
    given = as_given(encoder, captions)
    assert given.shape == (4, 11, 16) and (given[1] == 0).all() and (given[0, 7:] == 0).all()


def test_t5_gives_its_last_layer(tmp_path: Path) -> None:
    encoder = FrozenEncoder.open("t5", str(write_frozen(tmp_path, "t5")), 5, CPU)
    assert encoder.shape == {"text_tokens": 5, "text_width": 16, "text_pooled": False}
    assert [len(array) for array in encoder.read(["a red circle", "a", ""])] == [5, 3, 0]


def test_a_frozen_encoder_is_found_again_by_its_name_and_hash(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    FrozenEncoder.open("clip", str(clip), 10, CPU).save(folder)
    assert load_encoder(folder, CPU).shape["text_width"] == 16
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"sha256": "0" * 64}))
    with pytest.raises(BigrError, match=r"is another encoder than the one that the texts were read with"):
        load_encoder(folder, CPU)


@pytest.mark.parametrize(
    ("kind", "tokens", "said"),
    [
        ("t5", 10, "a model of type clip_text_model; text.encoder is t5"),
        ("clip", 77, "text.tokens is 77; .* reads 12 at most: lower it"),
    ],
)
def test_an_encoder_that_does_not_fit_is_one_line(kind: str, tokens: int, said: str, clip: Path) -> None:
    with pytest.raises(BigrError, match=said) as caught:
        FrozenEncoder.open(kind, str(clip), tokens, CPU)
    assert "\n" not in str(caught.value)


def test_a_frozen_encoder_of_another_width_than_the_models_is_one_line(clip: Path, tmp_path: Path) -> None:
    model = BiGR(BiGRConfig(BITS, GRID, 3, DIM, 2, 2, 32, 1, ffn_multiple_of=32, **FEATURES))
    save(tmp_path / "bigr", model)
    (tmp_path / "text").mkdir()
    FrozenEncoder.open("clip", str(clip), P, CPU).save(tmp_path / "text")
    with pytest.raises(
        BigrError, match=r"takes texts of 6 tokens and a vector of width 12, .* of width 16; run `dvc rep"
    ):
        encoder_of(tmp_path / "bigr", tmp_path / "text", CPU)
    fits = BiGR(BiGRConfig(BITS, GRID, 3, DIM, 2, 2, 32, 1, ffn_multiple_of=32, **FEATURES | {"text_width": 16}))
    save(tmp_path / "bigr", fits)
    assert encoder_of(tmp_path / "bigr", tmp_path / "text", CPU).shape["text_width"] == 16


def test_a_missing_or_damaged_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match="no such folder, and not the id of a repository"):
        FrozenEncoder.open("clip", str(tmp_path / "none"), 5, CPU)
    with pytest.raises(BigrError, match=r"cannot be loaded .*it must be a folder with config.json") as caught:
        (tmp_path / "empty").mkdir()
        FrozenEncoder.open("clip", str(tmp_path / "empty"), 5, CPU)
    assert "\n" not in str(caught.value)


# On disk


@pytest.mark.parametrize(
    ("shape", "arrays"),
    [
        (
            {"text_tokens": 4, "text_vocabulary": 9},
            [np.array(a, np.int32) for a in ([1, 2], [], [3], [4, 5, 6, 7], [])],
        ),
        (
            {"text_tokens": 2, "text_width": 3, "text_pooled": True},
            [np.full((n, 3), n + 1, np.float16) for n in (2, 0, 3, 1, 0)],
        ),
    ],
    ids=["numbers", "features"],
)
def test_texts_come_back_ragged_from_several_files(shape: dict, arrays: list[np.ndarray], tmp_path: Path) -> None:
    write_texts(tmp_path / "a.safetensors", arrays[:2], "hash", 1)
    write_texts(tmp_path / "b.safetensors", arrays[2:], "hash", 0)
    write_text_index(tmp_path, "hash", shape, {"val": ["a.safetensors", "b.safetensors"]})
    found = Texts.open(tmp_path, "val", 5)
    assert found is not None and len(found) == 5 and found.encoder == "hash"
    rows = found.batch(torch.tensor([3, 0, 4]))
    for row, array in zip(rows, (arrays[3], arrays[0], arrays[4]), strict=True):
        assert np.array_equal(row[: len(array)], array) and (row[len(array) :] == 0).all()
    assert rows.dtype == (torch.float32 if "text_width" in shape else torch.int64)
    counts = text_counts(StoredFile(str(tmp_path / "a.safetensors"), "text"))
    assert counts == {"captions": 2, "cut": 1, "without_words": 1}
    with pytest.raises(BigrError, match="holds 5 val texts for 6 images; run the stage text again"):
        Texts.open(tmp_path, "val", 6)
    write_texts(tmp_path / "b.safetensors", arrays[2:], "another", 0)
    with pytest.raises(BigrError, match=r"b.safetensors is of another encoder"):
        Texts.open(tmp_path, "val", 5)


def test_there_may_be_no_texts(tmp_path: Path) -> None:
    assert Texts.open(tmp_path / "none", "train", 3) is None
    write_text_index(tmp_path, None, {}, {})
    assert Texts.open(tmp_path, "train", 3) is None


def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red circle\n\n赤い円\n \n\n", encoding="utf-8")
    assert read_prompts(path, "samples.prompts") == ["a red circle", "", "赤い円"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        BigrError, match=r"samples.prompts: .*prompts.txt cannot be read \(.*it must have a prompt in ea"
    ):
        read_prompts(path, "samples.prompts")
    path.write_text("\n \n")
    with pytest.raises(BigrError, match=r"has no prompt; write one in each line"):
        read_prompts(path, "samples.prompts")
    with pytest.raises(BigrError, match=r"cannot be read \(No such file or directory\)"):
        read_prompts(tmp_path / "none", "samples.prompts")
