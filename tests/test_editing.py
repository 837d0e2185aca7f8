"""Zero-shot use on codes (docs/method.md, section 5): what is unknown, what is kept, and how it is measured."""

import pytest
import torch

from bigr.evaluation.zero_shot import other_classes, subject_boxes
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.sampling.editing import (
    enrich_codes,
    enrich_iterations,
    enrichment_groups,
    group_sizes,
    in_proportion,
    inpaint_codes,
    interpolate_codes,
    unknown_tokens,
)
from bigr.sampling.unmask import Iteration, Sampling, sample_codes, working_iterations

GRID, BITS, CLASSES = 4, 6, 3
SAMPLING = Sampling(iterations=8, diffusion_steps=3, guidance_scale=1.5)


@pytest.fixture(scope="module")
def model() -> BiGR:
    torch.manual_seed(0)
    config = BiGRConfig(BITS, GRID, CLASSES, 32, 2, 2, 32, 1, ffn_multiple_of=32, diffusion_steps=16, init_std=0.2)
    model = BiGR(config).eval()
    for parameter in model.parameters():  # modulations start at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def codes(count: int = 2) -> torch.Tensor:
    return torch.rand(count, GRID**2, BITS, generator=torch.Generator().manual_seed(1)) > 0.5


def test_a_token_is_unknown_where_the_mask_covers_any_of_its_pixels() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 3, 4] = mask[0, 15, 15] = True
    assert unknown_tokens(mask, GRID)[0].nonzero().flatten().tolist() == [1, 15]


@pytest.mark.parametrize(("unknown", "iterations"), [(16, 8), (8, 4), (5, 3), (1, 1)])
def test_iterations_are_in_proportion_to_the_unknown(unknown: int, iterations: int) -> None:
    assert in_proportion(SAMPLING, unknown, 16).iterations == iterations


def test_working_iterations_are_those_that_the_sampler_shows(model: BiGR) -> None:
    for n in (1, 3, 16):
        seen: list[Iteration] = []
        sampling = Sampling(iterations=n, diffusion_steps=2)
        sample_codes(model, torch.tensor([0]), sampling, [0], on_iteration=seen.append)
        assert len(seen) == working_iterations(sampling, GRID**2)
        assert not seen[-1].masked.any()


def test_inpainting_changes_unknown_tokens_alone(model: BiGR) -> None:
    given, unknown = codes(), torch.zeros(2, GRID**2, dtype=torch.bool)
    unknown[:, 10:] = True
    found = inpaint_codes(model, given, unknown, torch.tensor([CLASSES, CLASSES]), SAMPLING, [0, 1])
    assert torch.equal(found[:, :10], given[:, :10])
    assert not torch.equal(found[:, 10:], given[:, 10:])


def test_how_an_image_is_inpainted_does_not_depend_on_the_masks_beside_it(model: BiGR) -> None:
    given, unknown = codes(3), torch.zeros(3, GRID**2, dtype=torch.bool)
    unknown[0, 12:] = unknown[1] = unknown[2, 10:14] = True
    labels = torch.tensor([0, 1, 2])
    together = inpaint_codes(model, given, unknown, labels, SAMPLING, [0, 1, 2])
    for row in range(3):
        one = slice(row, row + 1)
        alone = inpaint_codes(model, given[one], unknown[one], labels[one], SAMPLING, [row])
        assert torch.equal(together[one], alone)


def test_interpolation_mixes_the_condition_embeddings(model: BiGR, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, ratios = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), torch.tensor([1.0, 0.25, 0.0])
    found = interpolate_codes(model, a, b, ratios, SAMPLING, [7, 7, 7])
    assert torch.equal(found[0], sample_codes(model, a[:1], SAMPLING, [7])[0])
    assert torch.equal(found[2], sample_codes(model, b[:1], SAMPLING, [7])[0])
    table = model.backbone.cls_embedding.weight
    mixed = (0.25 * table[0] + 0.75 * table[1]).unsqueeze(0)
    assert torch.equal(found[1], sample_codes(model, a[:1], SAMPLING, [7], condition=mixed)[0])


def cells_of(order: torch.Tensor, cell: int) -> list[list[int]]:
    """The groups within each cell of a [g, g] grid; cells at the right and lower border are smaller."""
    bands = [band.split(cell, dim=1) for band in order.split(cell)]
    return [one.flatten().tolist() for band in bands for one in band]


def test_each_cell_deals_its_places_to_all_groups() -> None:
    order = enrichment_groups(GRID, 2, seed=3, round_=0).view(GRID, GRID)
    cells = cells_of(order, 2)
    assert all(sorted(cell) == [0, 1, 2, 3] for cell in cells)
    assert len({tuple(cell) for cell in cells}) > 1
    assert not torch.equal(order, enrichment_groups(GRID, 2, seed=3, round_=1).view(GRID, GRID))


@pytest.mark.parametrize(
    ("round_", "groups"),
    [
        (0, [1, 0, 1, 2, 2, 3, 3, 0, 1, 2, 2, 3, 0, 3, 0, 1]),
        (1, [3, 2, 1, 3, 1, 0, 2, 0, 0, 3, 3, 2, 1, 2, 1, 0]),
    ],
)
def test_the_groups_of_an_even_grid_are_those_recorded_for_the_seed(round_: int, groups: list[int]) -> None:
    assert enrichment_groups(4, 2, seed=3, round_=round_).tolist() == groups


@pytest.mark.parametrize(("grid", "cell"), [(1, 2), (2, 3), (3, 2), (5, 2), (7, 2), (7, 3), (8, 3)])
def test_on_any_grid_a_cell_has_no_group_twice_and_groups_are_of_one_size_up_to_a_token(grid: int, cell: int) -> None:
    drawn = [enrichment_groups(grid, cell, seed, 0) for seed in range(4)]
    for order in drawn:
        for places in cells_of(order.view(grid, grid), cell):
            assert len(set(places)) == len(places)
        sizes = torch.bincount(order, minlength=cell**2)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.tolist() == group_sizes(grid, cell)  # the same for every seed: an onlooker counts on it
    assert grid == 1 or len({tuple(order.tolist()) for order in drawn}) > 1


def test_enrichment_samples_each_token_once_a_round_given_the_others(model: BiGR) -> None:
    given, fixed = codes(), torch.zeros(2, GRID**2, dtype=torch.long)

    def watch(done: Iteration) -> None:
        fixed.add_((~done.entropy.isnan() & ~done.masked).long())
        assert (done.entropy.isnan()).sum() >= 2 * 12  # at most a quarter is asked for at a time

    none = torch.tensor([CLASSES, CLASSES])
    once = Sampling(iterations=1, diffusion_steps=2)
    found = enrich_codes(model, given, none, once, [0, 1], rounds=3, on_iteration=watch)
    assert (fixed == 3).all()
    assert not torch.equal(found, given)


@pytest.mark.parametrize("grid", [1, 3, 7])
def test_enrichment_of_an_odd_grid_samples_each_token_once_a_round(grid: int) -> None:
    model = BiGR(BiGRConfig(BITS, grid, CLASSES, 32, 1, 2, 32, 1, ffn_multiple_of=32, diffusion_steps=16)).eval()
    given = torch.rand(2, grid**2, BITS, generator=torch.Generator().manual_seed(1)) > 0.5
    fixed, seen = torch.zeros(2, grid**2, dtype=torch.long), []

    def watch(done: Iteration) -> None:
        seen.append(done)
        fixed.add_((~done.entropy.isnan() & ~done.masked).long())

    none = torch.tensor([CLASSES, CLASSES])
    sampling = Sampling(iterations=grid, diffusion_steps=2)
    found = enrich_codes(model, given, none, sampling, [0, 1], rounds=2, on_iteration=watch)
    assert found.shape == given.shape
    assert len(seen) == enrich_iterations(sampling, grid, rounds=2)
    once = Sampling(iterations=1, diffusion_steps=2)
    fixed.zero_()
    enrich_codes(model, given, none, once, [0, 1], rounds=2, on_iteration=watch)
    assert (fixed == 2).all()


def test_the_subject_is_what_differs_from_the_border() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[0, :, 2:5, 3] = 255
    images[0, :, 4, 6] = 200
    images[1] = 255
    images[1, :, 0, 0] = 0
    boxes = subject_boxes(images)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:5, 3:7] = True
    assert torch.equal(boxes[0], expected)
    assert boxes[1].nonzero().tolist() == [[0, 0]]
    assert boxes[2].all()  # nothing stands out: all of it


def test_other_classes_are_others_and_all_of_them_in_turn() -> None:
    labels = torch.zeros(6, dtype=torch.long)
    assert other_classes(labels, 3).tolist() == [1, 2, 1, 2, 1, 2]
    assert (other_classes(torch.arange(20) % 5, 5) != torch.arange(20) % 5).all()
