"""The tokenizer's adversarial loss (docs/method.md, section 1): hinge losses, their adaptive weight, DiffAugment.

Functions of tensors; `bigr.training.autoencoding` applies them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.runtime.distributed import mean_over_processes, world

TRANSLATION = 0.125
"""DiffAugment's largest shift, as a share of the image's side."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, a scalar: ½·mean(max(0, 1 − real)) + ½·mean(max(0, 1 + fake)).

    real, fake: its logits, of any shape.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The decoder's adversarial loss, a scalar: −mean(fake), of the discriminator's logits, of any shape."""
    return -fake.mean()


def adaptive_weight(nll: Tensor, gan: Tensor, last_weight: Tensor) -> Tensor:
    """λ = ‖∇nll‖/(‖∇gan‖ + 1e-4) at the decoder's last convolution, in [0, 1]; a scalar without gradient (VQGAN).

    It keeps the adversarial gradient no larger than that of the reconstruction. nll, gan: scalars that depend on
    `last_weight`; their graphs are kept. The gradients are those of the global batch. The backward passes run outside
    autocast.
    """
    device = last_weight.device.type if torch.amp.is_autocast_available(last_weight.device.type) else "cpu"  # not meta
    with torch.autocast(device, enabled=False):
        nll_gradient, gan_gradient = (
            mean_over_processes(torch.autograd.grad(l, last_weight, retain_graph=True)[0]) for l in (nll, gan)
        )
    return (nll_gradient.norm() / (gan_gradient.norm() + 1e-4)).clamp(0, 1)


def diff_augment(images: Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
    """DiffAugment (Zhao et al., 2020), policies color and translation, differentiable; draws of its own for each image.

    images: [B,3,H,W] in [0, 1]; part: (i, n), where they are part i of a batch in n equal parts; they get their part of
    the batch's draws. Returns the same shape, zero where an image was shifted away, not bounded to [0, 1].
    """
    shape = (3, part[1], len(images), 1, 1, 1)
    draws = torch.rand(shape, generator=generator, device=generator.device)[:, part[0]]
    brightness, saturation, contrast = draws.to(images)
    images = images + (brightness - 0.5)
    images = _scale_about(images, images.mean(dim=1, keepdim=True), 2 * saturation)
    images = _scale_about(images, images.mean(dim=(1, 2, 3), keepdim=True), contrast + 0.5)
    return _translate(images, generator, part)


def _scale_about(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return (images - centre) * factor + centre


def _translate(images: Tensor, generator: torch.Generator, part: tuple[int, int]) -> Tensor:
    """Shift each image by a whole number of pixels, up to ⌊side·TRANSLATION + ½⌋ in each direction."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = int(side * TRANSLATION + 0.5)
        shape = (part[1], len(images), 1)
        starts = torch.randint(2 * reach + 1, shape, generator=generator, device=generator.device)
        index = starts[part[0]].to(images.device) + torch.arange(side, device=images.device)
        along = [len(images), 1, 1, 1]
        along[dim] = side
        padded = F.pad(images, (0, 0, reach, reach) if dim == 2 else (reach, reach))
        # No index occurs twice, so that the gradient is a copy, which is deterministic on every device.
        images = padded.gather(dim, index.view(along).expand_as(images))
    return images


class _WholeBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of the global batch, of which each process has an equal share.

    torch's SyncBatchNorm is the same for GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        y = x.float()
        mean = mean_over_processes(y.mean(dim=(0, 2, 3), keepdim=True))
        variance = mean_over_processes((y - mean).square().mean(dim=(0, 2, 3), keepdim=True))
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = world() * y[:, 0].numel()
            self.running_mean.lerp_(mean.flatten(), self.momentum or 0.0)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum or 0.0)
        y = (y - mean) * (variance + self.eps).rsqrt()
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def normalise_whole_batches(module: nn.Module) -> None:
    """Let every BatchNorm in `module` take its statistics from the global batch instead of this process's share."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = _WholeBatchNorm
