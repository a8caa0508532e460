"""The variables that both spaces share, and the summary that the command prints."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from landscape.core.variables import Variable, Variables


def eigenpair_variables(dim: str, unit: str) -> Variables:
    """Eigenpairs by rank, and over `dim`: the end of the spectrum, or the example."""
    dims = (dim, "rank")
    return {
        "eigenvalue": Variable(dims, "eigenvalue", unit),
        "residual": Variable(dims, "residual relative to the eigenvalue"),
        "converged": Variable(dims, "1 where the residual is as asked for"),
        "products": Variable((dim,), "products with the matrix"),
    }


def stream_seed(seed: int, *words: str) -> int:
    """A seed of its own for every part, independent of those of other parts and seeds."""
    state = np.random.SeedSequence([seed, *"\0".join(words).encode()]).generate_state(2)
    return int(state[0]) << 32 | int(state[1])


def tell(result: xr.Dataset) -> list[str]:
    """A line for each end of the spectrum, and for trace and input curvature."""
    lines = []
    if "end" in result.dims:
        most = json.loads(result.attrs["spec"])["max_products"]
        narrow = json.loads(result.attrs["provenance"])["dtype"] != "float64"
        for end in result["end"].values:
            rows = result.sel(end=end)
            values = ", ".join(f"{value:.5g}" for value in rows["eigenvalue"].values)
            done, asked = int(rows["converged"].sum()), rows.sizes["rank"]
            reason = ""
            if done < asked and rows["products"] >= most:
                reason = ", --max-products"
            elif done < asked:
                reason = ": rounding allows no more" + (", --dtype float64 does" if narrow else "")
            lines.append(
                f"eigenvalues, {end}: {values}; {done} of {asked} converged, largest residual "
                f"{float(rows['residual'].max()):.1e}, {int(rows['products'])} products{reason}"
            )
    elif "eigenvalue" in result:
        top = result["eigenvalue"].values[:, 0]
        low, middle, high = np.quantile(top, (0.1, 0.5, 0.9), method="inverted_cdf")
        lines.append(
            f"top eigenvalue per example: median {middle:.4g}, 10-90 % {low:.4g} to {high:.4g}; "
            f"{int(result['converged'].sum())} of {result['converged'].size} converged"
        )
    for name in ("trace", "frobenius_norm"):
        if name in result:
            value, stderr = float(result[name]), float(result[f"{name}_stderr"])
            lines.append(f"{result[name].attrs['long_name']}: {value:.5g} ± {stderr:.2g}")
    return lines
