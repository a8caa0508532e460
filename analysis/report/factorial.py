"""What the report shows of a study of many arms: verdicts, effects, and the trade-off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis.claims import Evaluation, Verdict
from analysis.factors import Factorial
from analysis.figures import style
from analysis.figures.arrange import fit_height, legend, new_figure
from analysis.report.blocks import Block, Details, Figures, Section, Text
from analysis.report.numbers import MINUS, alike, interval, number, p_value
from analysis.report.plots import Drawing
from analysis.report.tables import Column, Table, columns
from analysis.stats.arrays import Floats
from analysis.stats.factorial import Contrast
from analysis.stats.student import t_reach
from analysis.study import COST, Endpoint, Study

VERDICTS = [
    *columns("text", "claim", "what must hold"),
    Column("verdict", "verdict"),
    Column("predicted"),
    *columns("number", "effect and 95 % interval", "p, Holm", "p", "seeds"),
]
EFFECTS = [
    Column("effect of"),
    *columns("number", "effect and 95 % interval", "interval of all", "p", "p, Holm", "seeds"),
]
_INCH = 0.16  # the height of a row
_MEGA = 1e6


def verdicts(study: Study, evaluation: Evaluation) -> list[Block]:
    """The table of claims, a row for each endpoint that decides one."""
    endpoints = {endpoint.name: endpoint for endpoint in evaluation.endpoints}
    said = evaluation.words()
    rows, data = [], []
    for v in evaluation.primary():
        endpoint = endpoints[v.endpoint]
        cells = [study.claims[v.claim], v.endpoint, v.verdict, predicted(endpoint)]
        effect = effect_text(v, endpoint)
        rows.append([*cells, effect, p_value(v.p_holm), p_value(v.p), str(v.seeds)])
        data.append(
            {
                "claim": v.claim,
                "verdict_of_claim": said[v.claim],
                "endpoint": v.endpoint,
                "contrast": v.arm,
                "predicts": endpoint.predicts,
                "margin": endpoint.margin,
                **{key: getattr(v, key) for key in ("verdict", "effect", "low", "high")},
                **{key: getattr(v, key) for key in ("p", "p_holm", "seeds")},
                "notes": " ".join(v.notes),
            }
        )
    claims = [[study.claims[claim], word] for claim, word in said.items()]
    shown = [Column("claim"), Column("verdict", "verdict")]
    plain: list[dict[str, object]] = [{"claim": c, "verdict": word} for c, word in said.items()]
    return [
        Table("claims", "What the seeds say of each claim", shown, claims, plain),
        Table("verdicts", "What decides each claim", VERDICTS, rows, data),
        Text(
            "A claim is supported if all that must hold does, contradicted if one does surely not; "
            "all of it was fixed before anything was measured. Effects are weighted sums of arms, "
            "computed within each seed. p is two-sided, or of two one-sided tests where an effect "
            "is predicted within a margin; Holm corrects it over the claims.",
            note=True,
        ),
    ]


def effect_text(verdict: Verdict, endpoint: Endpoint) -> str:
    """An effect with its interval; of costs that are counts, which have none, the count."""
    if endpoint.probe == COST and verdict.low == verdict.high and endpoint.compare == "difference":
        return f"{verdict.effect:,.0f}".replace("-", MINUS)
    return interval(verdict, endpoint.compare)


def predicted(endpoint: Endpoint) -> str:
    """What an endpoint says of its effect: `above 0.005`, `within ±0.01`, `lower than 0`."""
    if endpoint.predicts == "within":
        return f"within \N{PLUS-MINUS SIGN}{number(endpoint.margin)}"
    if endpoint.predicts in ("above", "below"):
        return f"{endpoint.predicts} {number(endpoint.margin)}"
    return f"{endpoint.predicts} than 0"


def sections(study: Study, evaluation: Evaluation) -> Iterator[Section]:
    """The factors' effects, and accuracy against overhead; nothing for a study without design."""
    if not evaluation.factorials or study.design is None:
        return
    section = Section("factors", "Main effects and interactions")
    section.blocks.append(
        Text(
            "A main effect is the mean of all settings with the factor less that of those without; "
            "A:B is half of what B changes in the effect of A, and so on. Intervals are Student's "
            "over seeds; those of all hold together. No claim rests on them.",
            note=True,
        )
    )
    for at, made in enumerate(evaluation.factorials, 1):
        section.blocks += _effects(made, f"factors.{at}")
    yield section
    told = [name for name in evaluation.factorials[0].arms if _cost(study, name)]
    if study.design.base in told:
        yield _trade_off(study, evaluation.factorials[0], told)


def _effects(made: Factorial, name: str) -> list[Block]:
    notes: list[Block] = [Text(note) for note in made.notes]
    if not made.effects:
        return [*notes, Text(f"{made.name}: no seed has every setting.")]
    unit = "log ratio" if made.endpoint.compare == "log_ratio" else "difference"
    caption = f"Effects on {made.name} ({unit})"
    rows, data = [], []
    for e in made.effects:
        effect, low, high, low_all, high_all = _shown(e)
        near = f"{effect} [{low}, {high}]"
        together = f"[{low_all}, {high_all}]"
        rows.append([e.name, near, together, p_value(e.p), p_value(e.p_holm), str(len(e.seeds))])
        record = {key: value for key, value in vars(e).items() if key != "p_equivalence"}
        data.append(record | {"seeds": len(e.seeds)})
    alt = "; ".join(f"{row[0]} {row[1]}" for row in rows)
    drawing = Drawing(
        f"{name}.effects",
        f"{caption}, with 95 % intervals (thin: all together); each stroke is a seed.",
        f"{caption}: {alt}.",
        effects_figure(made.effects, f"{made.name}, {unit}"),
    )
    means = _means(made)
    return [*notes, Figures([drawing]), Table(name, caption, EFFECTS, rows, data), means]


def _shown(effect: Contrast) -> list[str]:
    near = alike([effect.effect, effect.low, effect.high], null=0.0)
    far = alike([effect.effect, effect.low_all, effect.high_all], null=0.0)
    return [*near, *far[1:]]


def _means(made: Factorial) -> Details:
    shown = [Column("arm"), *columns("number", "mean", "standard deviation", "seeds")]
    rows, data = [], []
    for arm in made.arms:
        values = made.values[arm]
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        rows.append([arm, number(float(values.mean()), 4), number(spread), str(len(values))])
        data += [
            {"arm": arm, "seed": seed, "value": float(value)}
            for seed, value in zip(made.seeds[arm], values, strict=True)
        ]
    caption = f"{made.name.capitalize()} of every arm"
    name = f"arms.{made.endpoint.variable}"
    return Details(caption, [Table(name, caption, shown, rows, data)])


def effects_figure(effects: Sequence[Contrast], unit: str) -> Figure:
    """Draw effects as dots on two intervals, and every seed as a stroke.

    Args:
        effects: from top to bottom.
        unit: for the axis.
    """
    with style.context():
        figure = new_figure(1, gap=0.02)
        ax = figure.add_subplot()
        ax.axvline(0, color="0.5", lw=0.6, linestyle="-")
        for place, e in enumerate(effects):
            labelled = place == 0
            ax.plot(
                [e.low_all, e.high_all],
                [place] * 2,
                "-",
                color="black",
                lw=0.5,
                label="95 %, all together" * labelled,
            )
            ax.plot(
                [e.low, e.high], [place] * 2, "-", color="black", lw=1.6, label="95 %" * labelled
            )
            ax.plot(
                e.seeds,
                [place] * len(e.seeds),
                "|",
                color="0.45",
                ms=6,
                mew=0.7,
                label="seed" * labelled,
            )
            sure = e.p_holm <= 0.05
            ax.plot(
                e.effect,
                place,
                "o",
                color="black",
                mfc="black" if sure else "white",
                ms=4,
                zorder=4,
            )
        ax.plot([], [], "o", color="black", ms=4, label="p, Holm, at most 0.05")
        ax.set_yticks(range(len(effects)), [e.name for e in effects])
        ax.tick_params(axis="y", length=0)
        ax.set(ylim=(len(effects) - 0.4, -0.6), xlabel=unit)
        ax.locator_params(axis="x", nbins=5)
        legend(figure, [ax])
        fit_height(figure, [ax], 1, len(effects) * _INCH / 2.6)
    return figure


def _cost(study: Study, arm: str) -> dict[str, float]:
    """The median over an arm's networks of each cost; empty where none is known."""
    own = [cost for (name, _), cost in study.costs.items() if name == arm and cost]
    return {key: float(np.median([cost[key] for cost in own])) for key in (own[0] if own else ())}


def _trade_off(study: Study, made: Factorial, arms: Sequence[str]) -> Section:
    assert study.design
    costs = {name: _cost(study, name) for name in arms}
    base = costs[study.design.base]
    overhead = {name: (costs[name]["flops"] - base["flops"]) / _MEGA for name in arms}
    means = {name: float(made.values[name].mean()) for name in arms}
    higher = "loss" not in made.endpoint.variable
    best = envelope([overhead[n] for n in arms], [means[n] for n in arms], higher=higher)
    front = [arms[at] for at in best]
    reach = _reach(made, arms)
    caption = (
        f"{made.name.capitalize()} against the operations that a forward pass takes more than "
        f"{study.design.base}, with 95 % intervals over seeds, of how an arm differs from the mean "
        "of all. The line is the best at each cost: "
        f"{', '.join(front)}."
    )
    figure = trade_off_figure(
        {name: (overhead[name], means[name], reach[name]) for name in arms},
        front,
        settings=study.design.settings,
        labels=(f"overhead over {study.design.base} (MFLOP an example)", made.name),
    )
    alt = "; ".join(f"{n}: {number(means[n], 4)} at {number(overhead[n])} MFLOP" for n in arms)
    shown = [
        Column("arm"),
        *columns("number", made.name, "overhead (MFLOP)", "MFLOP", "parameters"),
        *columns("number", "kept for training (kB)", "time (ms)", "of its modules (ms)"),
        Column("on the envelope"),
    ]
    rows, data = [], []
    for name in sorted(arms, key=lambda name: (overhead[name], -means[name])):
        cost = costs[name]
        rows.append(
            [
                name,
                number(means[name], 4),
                number(overhead[name], 4),
                number(cost["flops"] / _MEGA, 4),
                f"{cost['parameters']:,.0f}",
                number(cost["memory"] / 1e3, 4),
                number(1e3 * cost["seconds"]),
                number(1e3 * cost["module_seconds"]),
                "yes" if name in front else "",
            ]
        )
        data.append({"arm": name, "mean": means[name], "overhead_mflop": overhead[name], **cost})
    return Section(
        "overhead",
        "Accuracy against overhead" if higher else "Loss against overhead",
        [
            Figures([Drawing("overhead", caption, f"{caption} {alt}.", figure)]),
            Table("overhead.costs", "What every arm costs, for one example", shown, rows, data),
            Text(
                "Operations are those of convolutions and matrix products; sampling, softmax and "
                "norms count nothing. Times are medians over networks on one machine, and no more "
                "than a hint.",
                note=True,
            ),
        ],
    )


def _reach(made: Factorial, arms: Sequence[str]) -> dict[str, float]:
    """Half the interval of each arm, without what a seed does to all arms alike; NaN if unknown.

    Source: Morey 2008, Tutorials in Quantitative Methods for Psychology 4, 61-64.
    """
    own = {name: dict(zip(made.seeds[name], made.values[name], strict=True)) for name in arms}
    seeds = [seed for seed in own[arms[0]] if all(seed in own[name] for name in arms)]
    table = np.array([[own[name][seed] for seed in seeds] for name in arms])
    factor = (len(arms) / max(len(arms) - 1, 1)) ** 0.5
    reach = t_reach(table - table.mean(axis=0)) * factor
    return dict(zip(arms, map(float, reach), strict=True))


def envelope(costs: Sequence[float], values: Sequence[float], *, higher: bool) -> list[int]:
    """The places, by rising cost, of those that none beats at the same cost or a lower one.

    Args:
        costs: (n,).
        values: (n,), of which higher ones are better, or lower ones.
        higher: which.
    """
    found: list[int] = []
    sign = 1 if higher else -1
    for at in sorted(range(len(costs)), key=lambda at: (costs[at], -sign * values[at])):
        if not found or sign * values[at] > sign * values[found[-1]]:
            found.append(at)
    return found


def trade_off_figure(
    points: dict[str, tuple[float, float, float]],
    front: Sequence[str],
    *,
    settings: Sequence[str],
    labels: tuple[str, str],
) -> Figure:
    """Draw arms as points with intervals, and the envelope of the best as a line.

    Args:
        points: {arm: (cost, value, half of its interval)}.
        front: the arms of the envelope, by rising cost.
        settings: the arms of the factorial, drawn as dots; the others as squares.
        labels: of the axes.
    """
    with style.context():
        figure = new_figure(1, gap=0.02)
        ax = figure.add_subplot()
        line = np.array([points[name][:2] for name in front])
        ax.plot(line[:, 0], line[:, 1], "-", color="#D55E00", lw=1.2, label="envelope", zorder=1)
        for names, mark, colour, label in (
            ([n for n in points if n in settings], "o", "#0072B2", "settings"),
            ([n for n in points if n not in settings], "s", "black", "others"),
        ):
            at = np.array([points[name] for name in names]).reshape(-1, 3)
            ax.errorbar(
                at[:, 0],
                at[:, 1],
                at[:, 2],
                fmt=mark,
                color=colour,
                ms=4,
                lw=0.5,
                label=label,
                zorder=2,
            )
        ax.set(xlabel=labels[0], ylabel=labels[1])
        ax.margins(x=0.08)
        legend(figure, [ax])
        fit_height(figure, [ax], 1, 1.25)
        places = {name: point[:2] for name, point in points.items()}
        steps = np.linspace(0, 1, 40)[:, None]
        along = [a + steps * (b - a) for a, b in zip(line[:-1], line[1:], strict=True)]
        for name, (x, y) in zip(places, _apart(figure, ax, places, along), strict=True):
            ax.annotate(
                name,
                places[name],
                (x, y),
                textcoords="axes fraction",
                fontsize=style.NOTE_SIZE,
                va="center",
                fontweight="bold" if name in front else "normal",
                path_effects=[withStroke(linewidth=1.5, foreground="white")],
                arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.6", "shrinkA": 0},
            )
    return figure


def _apart(
    figure: Figure, ax: Axes, places: dict[str, tuple[float, float]], lines: Sequence[Floats]
) -> list[tuple[float, float]]:
    """Where the names stand, in fractions of the Axes: near their points, over no other's.

    Each takes the nearest place of those around its point that covers no point, no line and no
    earlier name; it may cover an interval.
    """
    extent = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    width, height = 72 * extent.width, 72 * extent.height  # in points of type
    size = style.NOTE_SIZE
    to_axes = ax.transData + ax.transAxes.inverted()
    points = to_axes.transform(list(places.values())) * (width, height)
    crossed = [to_axes.transform(line) * (width, height) for line in lines]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in np.concatenate([points, *crossed])]
    found = []
    for name, (x, y) in zip(places, points, strict=True):
        long = 0.62 * size * len(name)
        tries = [
            (
                x + far * np.cos(angle) - (long if np.cos(angle) < -0.1 else 0),
                y + far * np.sin(angle),
            )
            for far in np.arange(6, 90, 4)
            for angle in np.pi * np.array([0, 1, 0.25, -0.25, 0.75, -0.75, 0.5, -0.5])
        ]
        boxes = [(a, b - size / 2, a + long, b + size / 2) for a, b in tries]
        free = [box for box in boxes if _inside(box, width, height) and not _hits(box, taken)]
        box = (free or boxes)[0]
        taken.append(box)
        found.append((box[0] / width, (box[1] + size / 2) / height))
    return found


def _inside(box: Sequence[float], width: float, height: float) -> bool:
    return box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height


def _hits(box: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )
