"""Summaries over many examples: means with standard errors, and quantiles for heavy tails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from landscape.core.variables import Floats, Variable, Variables

QUANTILES = {"q10": 0.1, "median": 0.5, "q90": 0.9}


def declared(variables: Variables, names: Iterable[str], dims: Mapping[str, str]) -> Variables:
    """The variables that `summarized` fills in for each of `names`.

    Args:
        variables: the values themselves.
        names: which of them to summarise.
        dims: {dim: its new name, "" if it is averaged over}; others stay.
    """
    added: Variables = {}
    for name in names:
        each = variables[name]
        kept = tuple(filter(None, (dims.get(dim, dim) for dim in each.dims)))
        for kind, words in {
            "mean": "mean of ",
            "mean_stderr": "standard error of the mean of ",
            **{which: f"{level:.0%} quantile of " for which, level in QUANTILES.items()},
        }.items():
            label = words.replace("50% quantile", "median") + each.label
            added[f"{name}_{kind}"] = Variable(kept, label, each.unit)
    return added


def mean_and_stderr(values: Floats) -> tuple[Floats, Floats]:
    """The mean over the last axis, and its standard error s / sqrt(N) with the unbiased s.

    The error is NaN for a single value; if a value is inf or NaN, so are both.
    """
    count = values.shape[-1]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.sum(axis=-1) / count
        if count < 2:
            return mean, np.full_like(mean, np.nan)
        return mean, values.std(axis=-1, ddof=1) / count**0.5


def summarized(name: str, values: Floats) -> dict[str, Floats]:
    """Mean, its standard error and quantiles of values (N, repeats, ...) over N examples.

    The repeats of one example are dependent, so the mean is that of the examples' means, with the
    standard error s / sqrt(N) over these. Quantiles are order statistics of all values together,
    with NaN ranked highest: a network that overflows for some examples still has a median over all
    of them.

    Args:
        name: becomes `name_mean`, `name_mean_stderr`, `name_q10`, `name_median`, `name_q90`.
        values: (N, repeats, ...).

    Returns:
        {name: (...)}; the standard error of a single example is NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        mean, stderr = mean_and_stderr(np.moveaxis(values.mean(axis=1), 0, -1))
        ranked = np.sort(values.reshape(-1, *values.shape[2:]), axis=0)
        places = [int(np.ceil(level * len(ranked))) - 1 for level in QUANTILES.values()]
        whole = {f"{name}_mean": mean, f"{name}_mean_stderr": stderr}
    return whole | {f"{name}_{k}": v for k, v in zip(QUANTILES, ranked[places], strict=True)}


def summarized_where_defined(name: str, values: Floats) -> dict[str, Floats]:
    """`summarized` for values (N, ...) of which NaN says that there is none for this example.

    Returns:
        {name: (...)}, over the examples that have a value, and their number as `name_defined`.
    """
    count = (~np.isnan(values)).sum(axis=0)
    known = np.where(np.isnan(values), 0.0, values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = known.sum(axis=0) / count
        apart = np.where(np.isnan(values), 0.0, values - mean)
        stderr = np.sqrt((apart**2).sum(axis=0) / (count - 1) / count)
    ranked = np.sort(values, axis=0)  # NaN last
    whole = {
        f"{name}_mean": mean,
        f"{name}_mean_stderr": np.where(count > 1, stderr, np.nan),
        f"{name}_defined": count.astype(float),
    }
    for kind, level in QUANTILES.items():
        place = np.maximum(np.ceil(level * count).astype(int) - 1, 0)
        whole[f"{name}_{kind}"] = np.take_along_axis(ranked, place[None], axis=0)[0]
    return whole


def over_kinds(
    result: xr.Dataset, names: Iterable[str], kinds: Iterable[Sequence[str]]
) -> dict[str, Floats]:
    """`summarized` for variables of a result, by kind of direction if they have directions.

    Args:
        result: with the first dim `example`, and perhaps `direction` as the second.
        names: of the variables.
        kinds: the directions of each kind, which are the repeats of an example.

    Returns:
        {name: (kinds, ...)}, or (...) without directions.
    """
    values: dict[str, Floats] = {}
    for name in names:
        if "direction" not in result[name].dims:
            values |= summarized(name, result[name].values[:, None])
            continue
        each = [summarized(name, result[name].sel(direction=list(kind)).values) for kind in kinds]
        values |= {key: np.stack([row[key] for row in each]) for key in each[0]}
    return values


def in_words(result: xr.Dataset, name: str) -> str:
    """One line on a variable (N,), with quantiles, as its distribution may have a heavy tail."""
    about = result[name].attrs
    row = summarized("", result[name].values[:, None])
    return (
        f"{about['long_name']} ({about['units']}): median {row['_median']:.3g}, "
        f"10-90 % {row['_q10']:.3g} to {row['_q90']:.3g}, mean {row['_mean']:.3g}"
    )
