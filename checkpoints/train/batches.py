"""Split training images, compute their statistics, and augment them batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from checkpoints.data.images import Images, interleave
from checkpoints.device import Kernels, in_order


@dataclass(frozen=True, eq=False)
class Batches:
    """A whole data set in memory as uint8, augmented batch by batch.

    Args:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64, or (N, T) of sequences.
        mean: (C,) in [0, 1].
        std: (C,) in [0, 1].
        kernels: the network's kernels; see `checkpoints.kernels`.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    kernels: Kernels = "channels_last"

    def normalized(self, pixels: Tensor) -> Tensor:
        """Convert (B, C, H, W) uint8 to normalised float32, in the kernels' memory format."""
        scale, offset = 1 / (255 * self.std), self.mean / self.std
        images = torch.addcmul(-offset[:, None, None], pixels.float(), scale[:, None, None])
        return in_order(images, self.kernels)

    def plain(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in order."""
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            yield self.normalized(self.pixels[part]), self.labels[part]

    def augmented(
        self, size: int, shift: int, generator: torch.Generator, *, flip: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled, shifted and mirrored examples, without the last, smaller batch.

        All random numbers come from `generator`, on the CPU, so an epoch is the same on every
        device and after every interruption.
        """
        count, _, height, width = self.pixels.shape
        padded = functional.pad(self.pixels, (shift,) * 4)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
        rows = torch.arange(height)[None, :] + offsets[:, :1]
        columns = torch.arange(width).repeat(count, 1)
        columns[mirrored] = columns[mirrored].flip(1)
        columns += offsets[:, 1:]
        where = self.pixels.device
        order, rows, columns = order.to(where), rows.to(where), columns.to(where)
        for start in range(0, count - size + 1, size):
            part = slice(start, start + size)
            chosen = order[part]
            crops = padded[chosen[:, None, None], :, rows[part, :, None], columns[part, None, :]]
            yield self.normalized(crops.permute(0, 3, 1, 2)), self.labels[chosen]


def split(images: Images, validation: int, examples: int) -> tuple[Images, Images]:
    """Split `images` into a training and a held-out part, balanced and the same for every seed.

    Args:
        images: the training split.
        validation: number of images to hold out.
        examples: number of the remaining images to train on; 0 for all.

    Raises:
        ValueError: there are too few images.
    """
    if validation + max(examples, 1) > len(images):
        raise ValueError(
            f"{images.name} has {len(images)} training images; --validation {validation} and "
            f"--examples {examples} need {validation + max(examples, 1)}. Pass smaller numbers."
        )
    order = interleave(images.labels)
    held, kept = order[:validation], order[validation:]
    kept = np.sort(kept[:examples] if examples else kept)
    return images.take(kept), images.take(held)


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over all pixels, in [0, 1], to four decimals.

    Of sequences 0 and 1, which leave their symbols as they are.

    Raises:
        ValueError: a channel is constant.
    """
    if images.sequences:
        return (0.0,) * images.pixels.shape[1], (1.0,) * images.pixels.shape[1]
    shares = np.stack(
        [np.bincount(channel.ravel(), minlength=256) for channel in images.pixels.swapaxes(0, 1)]
    ) / (images.pixels.size / images.pixels.shape[1])
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1)).round(4)
    if not std.all():
        raise ValueError(
            f"{images.name}: a channel has the same value in every pixel, so it carries no "
            "information. Remove that channel."
        )
    return tuple(np.round(mean, 4).tolist()), tuple(std.tolist())
