"""The offline classifier: the same every time, and good enough to measure with."""

from itertools import islice

import pytest
import torch
from sklearn.datasets import load_digits

from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig, train_classifier

CPU = torch.device("cpu")


def digit_batches(size: int, images: int = 1400):
    """Endless training batches of the real digits at 16×16, float [B, 3, 16, 16]; the rest is held out."""
    data = load_digits()
    pixels = torch.from_numpy(data.images / 16).float()[:, None].expand(-1, 3, -1, -1)
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bilinear")
    labels = torch.from_numpy(data.target).long()
    draws = torch.Generator().manual_seed(0)
    mixed = torch.randperm(len(labels), generator=draws)  # the last images are of other writers
    pixels, labels = pixels[mixed], labels[mixed]

    def stream():
        while True:
            for chosen in torch.randperm(images, generator=draws)[: images // size * size].split(size):
                yield pixels[chosen], labels[chosen]

    return stream(), (pixels[images:], labels[images:])


def trained(batches, steps: int, image_size: int = 16, channels: int = 8) -> Classifier:
    shape = ClassifierConfig(image_size, classes=10, channels=channels, features=64)
    return train_classifier(batches, shape, steps=steps, learning_rate=0.003, device=CPU)


def test_the_classifier_follows_from_its_batches_and_from_no_seed_of_the_run() -> None:
    batches = list(islice(digit_batches(32)[0], 5))
    torch.manual_seed(1)
    first = trained(iter(batches), 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = trained(iter(batches), 5)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_classifier_is_the_same_however_many_threads_there_are() -> None:
    batches = list(islice(digit_batches(64)[0], 5))
    before = torch.get_num_threads()
    classifiers = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            classifiers.append(trained(iter(batches), 5))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    first, second = (classifier.state_dict() for classifier in classifiers)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_the_classifier_knows_at_least_98_percent_of_held_out_digits() -> None:
    batches, (images, labels) = digit_batches(128)
    classifier = trained(batches, 300, channels=32)
    assert (classifier.logits(images).argmax(1) == labels).float().mean() >= 0.98


@pytest.mark.parametrize("size", [8, 20, 24, 96, 256])
def test_the_classifier_takes_images_of_any_size(size: int) -> None:
    classifier = Classifier(ClassifierConfig(size, classes=7, channels=8, features=24)).eval()
    images = torch.rand(2, 3, size, size)
    assert classifier.features(images).shape == (2, 24)
    assert classifier.logits(images).shape == (2, 7)
