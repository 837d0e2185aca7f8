"""The tokenizer's perceptual and adversarial losses, against small computations made in another way."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr import config
from bigr.interop.lpips import load_lpips
from bigr.models.autoencoder.discriminator import MIN_SIDE, PatchDiscriminator
from bigr.models.autoencoder.perceptual import MIN_SIDE as LPIPS_MIN_SIDE
from bigr.models.autoencoder.perceptual import Lpips
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors
from bigr.training.adversarial import adaptive_weight, diff_augment, discriminator_loss, generator_loss
from tests.worlds import lpips_weights

PARAMS = Path(__file__).parents[1] / "params.yaml"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(seed))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return lpips_weights()


# LPIPS ---------------------------------------------------------------------------------------------------------------


def test_lpips_of_an_image_with_itself_is_zero(weights: dict[str, Tensor]) -> None:
    assert Lpips(weights)(images(), images()).tolist() == [0.0, 0.0]


def test_lpips_is_symmetric_and_grows_with_the_difference(weights: dict[str, Tensor]) -> None:
    lpips, a, noise = Lpips(weights), images(), images(seed=1) - 0.5
    near, far = lpips(a, a + 0.05 * noise), lpips(a, a + 0.5 * noise)
    assert (near > 0).all()
    assert (far > near).all()
    assert torch.allclose(far, lpips(a + 0.5 * noise, a), atol=1e-6)


def test_lpips_equals_a_literal_computation(weights: dict[str, Tensor]) -> None:
    layers: list[nn.Module] = []  # torchvision's vgg16().features up to relu5_3, by its configuration list
    for kind in ["c", "c", "M", "c", "c", "M", "c", "c", "c", "M", "c", "c", "c", "M", "c", "c", "c"]:
        if kind == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        weight = weights[f"features.{len(layers)}.weight"]
        layers += [nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1), nn.ReLU()]
    vgg = nn.Sequential(*layers)
    vgg.load_state_dict({n.removeprefix("features."): t for n, t in weights.items() if n.startswith("features.")})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of images in [0, 1]

    def features(x: Tensor) -> list[Tensor]:
        x, found = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1), []
        for number, layer in enumerate(vgg):
            x = layer(x)
            if number in (3, 8, 15, 22, 29):
                found.append(x)
        return found

    a, b = images(seed=1), images(seed=2)
    expected = torch.zeros(2)
    for stage, (fa, fb) in enumerate(zip(features(a), features(b), strict=True)):
        for i in range(2):
            for y in range(fa.shape[2]):
                for x in range(fa.shape[3]):
                    u, v = (f[i, :, y, x] / (f[i, :, y, x].pow(2).sum().sqrt() + 1e-10) for f in (fa, fb))
                    term = (weights[f"lin{stage}.model.1.weight"].flatten() * (u - v) ** 2).sum()
                    expected[i] += term / (fa.shape[2] * fa.shape[3])
    assert torch.allclose(Lpips(weights)(a, b), expected.detach(), rtol=1e-4)


def test_lpips_is_frozen_and_its_gradient_reaches_the_images(weights: dict[str, Tensor]) -> None:
    lpips, a = Lpips(weights), images().requires_grad_()
    assert not any(p.requires_grad for p in lpips.parameters())
    assert not lpips.training
    lpips(a, images(seed=1)).sum().backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0


def test_lpips_works_down_to_its_least_image_side(weights: dict[str, Tensor]) -> None:
    lpips = Lpips(weights)
    assert lpips(images(side=LPIPS_MIN_SIDE), images(side=LPIPS_MIN_SIDE, seed=1)).isfinite().all()
    with pytest.raises(RuntimeError):
        lpips(images(side=LPIPS_MIN_SIDE - 1), images(side=LPIPS_MIN_SIDE - 1, seed=1))


def test_lpips_file_gives_the_same_distance(weights: dict[str, Tensor], tmp_path: Path) -> None:
    write_tensors(tmp_path / "lpips.safetensors", weights)
    a, b = images(), images(seed=1)
    assert torch.equal(load_lpips(tmp_path / "lpips.safetensors")(a, b), Lpips(weights)(a, b))


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("features.12.bias", None, "features.12.bias is missing"),
        ("lin3.model.1.weight", None, "lin3.model.1.weight is missing"),
        ("features.5.weight", torch.zeros(6, 5, 3, 3), "features.5.weight: has shape 6×5×3×3; expected any×4×3×3"),
        ("lin0.model.1.weight", torch.zeros(1, 64, 1, 1), "lin0.model.1.weight: has shape 1×64×1×1; expected 1×4×1×1"),
        ("lin1.model.1.weight", -torch.ones(1, 6, 1, 1), "lin1.model.1.weight: holds negative weights"),
    ],
)
def test_unfit_lpips_file_is_one_line_naming_setting_file_and_tensor(
    weights: dict[str, Tensor], tmp_path: Path, name: str, tensor: Tensor | None, says: str
) -> None:
    del weights[name]
    write_tensors(tmp_path / "lpips.safetensors", weights if tensor is None else weights | {name: tensor})
    with pytest.raises(BigrError) as error:
        load_lpips(tmp_path / "lpips.safetensors")
    message = str(error.value)
    assert says in message
    assert message.startswith("tokenizer.perceptual_weights: ")
    assert "lpips.safetensors" in message
    assert "\n" not in message


def test_missing_or_unreadable_lpips_file_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"^tokenizer\.perceptual_weights: .*nowhere\.safetensors: no such file"):
        load_lpips(tmp_path / "nowhere.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(BigrError, match=r"^tokenizer\.perceptual_weights: .*not a readable safetensors file"):
        load_lpips(tmp_path / "broken.safetensors")


# The discriminator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "patches"), [(24, 1), (32, 2), (64, 6), (256, 30)])
def test_discriminator_judges_a_grid_of_patches(side: int, patches: int) -> None:
    discriminator = PatchDiscriminator(base_channels=2)
    assert discriminator(images(2, side)).shape == (2, 1, patches, patches)


def test_discriminator_sees_patches_of_70_pixels() -> None:
    discriminator = PatchDiscriminator(base_channels=2).eval()  # BatchNorm's running figures mix no positions
    x = images(1, 128).requires_grad_()
    discriminator(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=0).nonzero()
    assert (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist() == [70, 70]


def test_discriminator_has_the_published_size_and_names() -> None:
    state = PatchDiscriminator(base_channels=64).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("weight")}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.3.weight": (128,),
        "main.5.weight": (256, 128, 4, 4),
        "main.6.weight": (256,),
        "main.8.weight": (512, 256, 4, 4),
        "main.9.weight": (512,),
        "main.11.weight": (1, 512, 4, 4),
    }
    assert state["main.8.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["main.9.weight"].mean().item() == pytest.approx(1.0, abs=0.01)


def test_discriminator_and_lpips_answer_in_float32_under_autocast(weights: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PatchDiscriminator(base_channels=2)(images()).dtype == torch.float32
        assert Lpips(weights)(images(), images(seed=1)).dtype == torch.float32


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 24 or more"):
        PatchDiscriminator(base_channels=2)(images(2, MIN_SIDE - 1))


@pytest.mark.parametrize(("term", "least"), [("gan_weight", MIN_SIDE), ("perceptual_weight", LPIPS_MIN_SIDE)])
def test_settings_refuse_an_image_size_that_a_loss_cannot_take(term: str, least: int) -> None:
    values = config.read(PARAMS)
    values["tokenizer"] |= {term: 1.0, "perceptual_weights": "lpips.safetensors", "attention_resolutions": []}
    values["samples"]["iterations"] = 1
    values["shards"]["image_size"] = least
    config.validate(values)
    values["shards"]["image_size"] = least - 4
    with pytest.raises(BigrError, match=rf"shards\.image_size must be {least} or more .*{term}.*, got {least - 4}"):
        config.validate(values)


# Hinge losses and their weight ---------------------------------------------------------------------------------------


def test_hinge_losses_have_their_values() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx((2.5 / 3 + 2.5 / 3) / 2)
    assert generator_loss(fake).item() == pytest.approx(0.5)


def test_discriminator_that_separates_by_the_margin_has_nothing_to_learn() -> None:
    assert discriminator_loss(torch.full((4,), 1.0), torch.full((4,), -1.0)).item() == 0.0


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    nll, gan = (0.1 * weight).sum(), (2 * weight[0]).sum()  # gradients: 0.1 six times, 2 three times
    expected = (6 * 0.1**2) ** 0.5 / ((3 * 2**2) ** 0.5 + 1e-4)
    assert adaptive_weight(nll, gan, weight).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("nll_slope", "gan_slope", "expected"), [(5.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_adaptive_weight_stays_between_0_and_1(nll_slope: float, gan_slope: float, expected: float) -> None:
    weight = torch.zeros(3, requires_grad=True)
    assert adaptive_weight((nll_slope * weight).sum(), (gan_slope * weight).sum(), weight).item() == expected


def test_adaptive_weight_takes_its_gradients_outside_autocast() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.rand(4, 4, generator=draws).requires_grad_()
    left, right = torch.rand(4, 4, generator=draws), torch.rand(4, 4, generator=draws)
    nll, gan = (left @ weight).square().sum(), (9 * weight @ right).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = adaptive_weight(nll, gan, weight)
    assert under.equal(adaptive_weight(nll, gan, weight))


def test_adaptive_weight_leaves_both_losses_to_be_trained() -> None:
    weight = torch.ones(3, requires_grad=True)
    nll, gan = weight.pow(2).sum(), weight.pow(3).sum()
    factor = adaptive_weight(nll, gan, weight)
    assert not factor.requires_grad
    (nll + factor * gan).backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, 2 + factor * 3)


# DiffAugment ---------------------------------------------------------------------------------------------------------


def test_same_generator_gives_the_same_augmentation_and_another_one_another() -> None:
    x = images(4)
    first = diff_augment(x, seeded(1))
    torch.manual_seed(3)
    assert torch.equal(first, diff_augment(x, seeded(1)))
    assert not torch.equal(first, diff_augment(x, seeded(2)))
    assert first.shape == x.shape


def test_augmentation_is_differentiable() -> None:
    x = images(2, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: diff_augment(y, seeded(1)), (x,), fast_mode=True)


def test_augmentation_is_color_then_a_shift_of_at_most_an_eighth() -> None:
    side, reach, count = 16, 2, 64
    x = images(count, side)
    augmented = diff_augment(x, seeded(5))
    draws = torch.rand((3, count, 1, 1, 1), generator=seeded(5))
    shifts = set()
    for i in range(count):
        brightness, saturation, contrast = (draw[i].item() for draw in draws)
        y = x[i] + brightness - 0.5
        grey = y.mean(dim=0, keepdim=True)
        y = grey + (y - grey) * 2 * saturation
        y = y.mean() + (y - y.mean()) * (contrast + 0.5)
        candidates = {}
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                shifted = F.pad(y, (reach + dx, reach - dx, reach + dy, reach - dy))[
                    :, reach : side + reach, reach : side + reach
                ]
                candidates[dy, dx] = (shifted - augmented[i]).abs().max().item()
        best = min(candidates, key=candidates.__getitem__)
        assert candidates[best] < 1e-5
        shifts.add(best)
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == set(range(-reach, reach + 1))
