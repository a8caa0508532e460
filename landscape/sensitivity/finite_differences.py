"""Changes at finite distances: along directions, under noise, down the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from checkpoints.problem import Tensors
from landscape.sensitivity.examples import Examples

PGD_STEPS, PGD_LENGTH = 5, 2.5  # number of steps, and their total length in radii


def normal(seed: int, stream: int, draw: int, examples: Sequence[int], size: int) -> Tensor:
    """Standard normal rows (n, size), float64 on the CPU; each depends on its example alone.

    Args:
        seed: of the probe, not negative.
        stream: number of this use of the seed; different streams and draws are independent.
        draw: number of the draw.
        examples: the numbers of the examples in the problem.
        size: of one example's draw.
    """
    keys = [(seed, stream, draw, example) for example in examples]
    return torch.from_numpy(
        np.stack([np.random.default_rng(k).standard_normal(size) for k in keys])
    )


def unit(rows: Tensor) -> Tensor:
    """Rows (n, d) scaled to norm 1; NaN for a row of zeros, which has no direction."""
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return scaled


def adversarial(examples: Examples, radius: float) -> Tensor:
    """The direction to a point of larger loss at `radius`: projected gradient ascent in L2.

    Five steps of half a radius each, starting from the example, along the gradient's direction,
    each followed by a projection onto the ball.

    Args:
        examples: n of them.
        radius: L2 distance in units of the pixel range.

    Returns:
        (n, d) float64 of norm 1; NaN where the gradient is 0.

    Cost: four forward and backward passes.
    Source: Madry et al. 2018, section 2.1, arXiv:1706.06083.
    """
    place, uphill = torch.zeros_like(examples.gradients), examples.gradients
    for step in range(PGD_STEPS):
        if step:
            uphill = examples.at(place).gradients
        place = place + PGD_LENGTH / PGD_STEPS * radius * unit(uphill)
        place = place / (place.norm(dim=1, keepdim=True) / radius).clamp(min=1)
    return unit(place)


def differences(examples: Examples, direction: Tensor, radius: float) -> Tensors:
    """How logits, loss and its gradient change between x and x + ru, and x - ru.

    Args:
        examples: x, n of them.
        direction: (n, d), u of norm 1.
        radius: r > 0, in units of the pixel range.

    Returns:
        {name: (n,)} float64: `difference` |f(x+ru) - f(x)| / r; `second_difference`
        |f(x+ru) - 2f(x) + f(x-ru)| / r^2; `curvature`, the same of the loss, with its sign;
        `gradient_change` |grad l(x+ru) - grad l(x)| / r; `moved_loss` at x + ru, and
        `moved_accuracy`, 0 or 1, where that is defined.

    Cost: two forward passes and one backward pass.
    Source: Moosavi-Dezfooli et al. 2019, arXiv:1811.09716 (the change of the gradient).
    """
    ahead = examples.at(radius * direction)
    logits, losses = examples.outputs_at(-radius * direction)
    # Neighbours are subtracted first: such differences are exact where the values are close.
    step = ahead.logits - examples.logits
    bend = step - (examples.logits - logits)
    change = (ahead.losses - examples.losses) - (examples.losses - losses)
    turn = ahead.gradients - examples.gradients
    return {
        "difference": step.norm(dim=1) / radius,
        "second_difference": bend.norm(dim=1) / radius**2,
        "curvature": change / radius**2,
        "gradient_change": turn.norm(dim=1) / radius,
        "moved_loss": ahead.losses,
        **{f"moved_{name}": value for name, value in examples.hits(ahead.logits).items()},
    }


def around(
    places: Sequence[Examples], directions: Sequence[Tensor], distances: Sequence[float]
) -> Tensors:
    """`differences` along every direction at every distance.

    Args:
        places: for each distance the same examples, in the precision to evaluate in.
        directions: (n, d) each, of norm 1.
        distances: in units of the pixel range.

    Returns:
        {name: (n, directions, distances)} float64.
    """
    columns = []
    for place, distance in zip(places, distances, strict=True):
        rows = [differences(place, direction, distance) for direction in directions]
        columns.append({name: torch.stack([row[name] for row in rows], dim=1) for name in rows[0]})
    return {name: torch.stack([column[name] for column in columns], dim=2) for name in columns[0]}


def floors(
    one: Examples, other: Examples, places: Sequence[Examples], distances: Sequence[float]
) -> Tensors:
    """Rounding error of each finite difference.

    Evaluations are assumed to have independent errors of the same size: three with the weights 1, 2
    and 1 in a second difference, two in a change. Their size is estimated from the difference
    between two precisions, which is dominated by the coarser one, and scales with the machine
    epsilon.

    Args:
        one: examples in some precision.
        other: the same examples in another one.
        places: for each distance the same examples, in the precision used.
        distances: r, in units of the pixel range.

    Returns:
        {name: (n, distances)} float64: `second_difference_floor`, `curvature_floor` and
        `gradient_change_floor`.
    """
    coarse = max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps)
    errors = {
        "second_difference": ((one.logits - other.logits).norm(dim=1), 6**0.5, 2),
        "curvature": ((one.losses - other.losses).abs(), 6**0.5, 2),
        "gradient_change": ((one.gradients - other.gradients).norm(dim=1), 2**0.5, 1),
    }
    scales = [torch.finfo(place.dtype).eps / coarse for place in places]
    return {
        f"{name}_floor": torch.stack(
            [
                weight * error * scale / distance**power
                for scale, distance in zip(scales, distances, strict=True)
            ],
            dim=1,
        )
        for name, (error, weight, power) in errors.items()
    }


def noisy(examples: Examples, noise: Iterable[Tensor], sigmas: Sequence[float]) -> Tensors:
    """Loss and accuracy of each example under Gaussian noise, over draws.

    Args:
        examples: n of them.
        noise: standard normal draws (n, d); every sigma scales the same draws.
        sigmas: in units of the pixel range.

    Returns:
        {name: (n, sigmas)} float64: `noise_loss` and, where that is defined, `noise_accuracy`,
        means over the draws with their `_stderr`, which is NaN for one draw.

    Cost: one forward pass per draw and sigma.
    """
    drawn: dict[str, list[Tensor]] = {}
    for draw in noise:
        rows: dict[str, list[Tensor]] = {}
        for sigma in sigmas:
            logits, losses = examples.outputs_at(sigma * draw.to(examples.gradients))
            for name, value in {"loss": losses, **examples.hits(logits)}.items():
                rows.setdefault(f"noise_{name}", []).append(value)
        for name, row in rows.items():
            drawn.setdefault(name, []).append(torch.stack(row, dim=1))
    values: Tensors = {}
    for name, tables in drawn.items():
        table = torch.stack(tables)
        alone = torch.full_like(table[0], torch.nan)
        stderr = table.std(dim=0) / len(table) ** 0.5 if len(table) > 1 else alone
        values |= {name: table.mean(dim=0), f"{name}_stderr": stderr}
    return values


def bands(examples: Examples, distances: Sequence[float]) -> Tensors:
    """Range of loss and gradient change along a gradient step, against its prediction.

    Args:
        examples: x with its gradient g, n of them.
        distances: s, the lengths of the steps from x to x - s g / |g|.

    Returns:
        {name: (n,)} float64, over the steps: the smallest and the largest loss,
        `band_loss_min` and `band_loss_max`; likewise of |g(x) - g(x - s g / |g|)|,
        `band_gradient_min` and `band_gradient_max`; and the largest of that over s,
        `band_smoothness`.

    Cost: one forward and one backward pass per step.
    Source: Santurkar et al. 2018, section 3.1, arXiv:1805.11604, with inputs instead of weights.
    """
    there = [examples.at(-distance * unit(examples.gradients)) for distance in distances]
    loss = torch.stack([place.losses for place in there])
    change = torch.stack([(p.gradients - examples.gradients).norm(dim=1) for p in there])
    ratio = change / change.new_tensor(distances)[:, None]
    return {
        "band_loss_min": loss.amin(dim=0),
        "band_loss_max": loss.amax(dim=0),
        "band_gradient_min": change.amin(dim=0),
        "band_gradient_max": change.amax(dim=0),
        "band_smoothness": ratio.amax(dim=0),
    }
