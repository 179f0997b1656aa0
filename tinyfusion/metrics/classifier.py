"""The small digits classifier whose features and class probabilities score samples of digits.

It plays the part that Inception plays for photographs. Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import tinyfusion.assets
from tinyfusion.data.digits import move
from tinyfusion.errors import InputError
from tinyfusion.seeding import generator, permutation

ASSET = "digits_classifier.safetensors"
"""File in ``tinyfusion.assets`` with the shipped weights (float32)."""


def classifier_file() -> Path:
    """The shipped weights."""
    return Path(tinyfusion.assets.__file__).with_name(ASSET)


class DigitsClassifier(nn.Module):
    """Convolutional classifier of 8x8 digits with 64 penultimate features."""

    input_shape = (1, 8, 8)
    num_features = 64
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.hidden = nn.Linear(64 * 2 * 2, self.num_features)
        self.head = nn.Linear(self.num_features, self.num_classes)

    def maps(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], shape (B, 1, 8, 8), to the last maps (B, 64, 4, 4), >= 0."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.conv3(x))

    def pooled(self, maps: Tensor) -> Tensor:
        """Map what `maps` gives to non-negative features (B, 64)."""
        return F.relu(self.hidden(F.max_pool2d(maps, 2).flatten(1)))

    def features(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], shape (B, 1, 8, 8), to non-negative features (B, 64)."""
        return self.pooled(self.maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], shape (B, 1, 8, 8), to class logits (B, 10)."""
        return self.head(self.features(x))


def load_digits_classifier() -> DigitsClassifier:
    """The shipped classifier, float32 on the CPU, in eval mode; draws no random numbers."""
    weights = load_file(classifier_file())
    with torch.device("meta"):
        net = DigitsClassifier()
    net.load_state_dict(weights, assign=True)
    return net.requires_grad_(False).eval()


def accuracy(net: DigitsClassifier, images: Tensor, labels_B: Tensor) -> float:
    """Share of ``images`` (float in [-1, 1], shape (B, 1, 8, 8)) that get their own label."""
    with torch.no_grad():
        return (net(images).argmax(-1) == labels_B).double().mean().item()


def train_classifier(
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    steps: int = 1500,
    batch_size: int = 128,
    peak_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    label_smoothing: float = 0.1,
) -> DigitsClassifier:
    """Train the classifier with AdamW under a cosine rate and shifts of up to one pixel.

    Args:
        images: training images in [-1, 1], shape (N, 1, 8, 8), -1 being the background.
        labels: their classes 0..9, shape (N,).
        seed: decides initial weights, order and shifts.
        steps: optimiser steps.
        batch_size: images per step, at most N.
        peak_rate: learning rate of the first step; the last one's is near zero.
        weight_decay: of AdamW, per unit of learning rate.
        label_smoothing: share of each label spread over all classes. Without it the features
            grow with training, and FID measures how confident the classifier is.

    Returns:
        The classifier in eval mode.

    Raises:
        InputError: no steps, or a batch larger than the data.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch_size must be 1 to {len(images)} (all images), got {batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitsClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    batches_per_epoch = len(images) // batch_size
    for step in range(steps):
        epoch, batch = divmod(step, batches_per_epoch)
        order = permutation(seed, epoch, len(images))
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        draws = generator(seed, "classifier shift", step)
        offsets_B2 = torch.randint(-1, 2, (batch_size, 2), generator=draws)
        moved = move(images[rows], offsets_B2, limit=1)
        loss = F.cross_entropy(net(moved), labels[rows], label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()
