"""The check of Theorem 1 as Markdown: a sentence and the tables for each population, then the distributions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from tabulate import tabulate

from rapbench.checks import Bounds, CheckRecord, Inequality, Theorem, Verdict
from rapbench.errors import SpecError

SYMBOLS = ["q %", "sigma_1", "sigma_2", "sup gradient", "a", "b", "condition 1", "condition 2", "1/4 < a < 3/4"]
SIDES = ["q %", "delta", "sigma(delta) at most", "2 a sigma / b", "< delta", "protect >= delta %", "triggered < delta %", "conclusion"]
FOOT = (
    "q: every inf and sup of the theorem replaced by the q and 1 - q quantile over the texts. sigma(delta): the smallest size tried that "
    "takes delta from every protect-label text that q leaves, so `< delta` = no means not shown, not refuted. Last three columns: what the "
    "theorem concludes, measured under that perturbation: the inequality is sufficient, not necessary. --: no size tried reaches delta, or "
    "b is not positive."
)


def render(records: Sequence[CheckRecord], form: str) -> str:
    """Give every check in the format asked for: github or json."""
    if form == "json":
        return json.dumps({"checks": [dataclasses.asdict(one) for one in records]}, indent=1, allow_nan=False)
    if form != "github":
        raise SpecError(f"the checks of the theorem are no one table, so there is no {form!r} of them: give github or json")
    return "\n\n".join(_part(one) for one in records)


def _part(one: CheckRecord) -> str:
    home = f", poisoned on {one.poisoned_on}" if one.poisoned_on else ""
    head = f"### {one.dataset}{home}, {one.attack}, {one.victim}, seed {one.seed}"
    return f"{head}\n\n{tables(one.theorem) if one.theorem else f'{one.status}: {one.reason}'}"


def tables(theorem: Theorem) -> str:
    """Give the summary and the tables as Markdown; shares in per cent."""
    percents = [f"{percent} %" for percent, _ in theorem.distributions[0].quantiles]
    rows = [[one.name, str(one.n), *(_number(value) for _, value in one.quantiles)] for one in theorem.distributions]
    return "\n\n".join(
        [
            *(part for verdict in theorem.verdicts for part in _population(verdict)),
            FOOT,
            f"Distributions over the texts, each with the word {theorem.word!r} in front (norm of its row {theorem.word_norm:.3g}):",
            _table(["quantity", "n", *percents], rows),
        ]
    )


def _population(verdict: Verdict) -> tuple[str, str, str]:
    sides = [_sides(one.q, side) for one in verdict.bounds for side in one.inequalities]
    return summary(verdict), _table(SYMBOLS, [_symbols(one) for one in verdict.bounds]), _table(SIDES, sides)


def summary(verdict: Verdict) -> str:
    """Give one sentence: what the theorem says of these texts at each q."""
    protect, other, triggered = verdict.counts
    head = f"Theorem 1 on {verdict.population} ({protect} of the protect label, {other} of others, {triggered} triggered): "
    return head + "; ".join(f"at {_trim(one.q)} {_verdict(one)}" for one in verdict.bounds) + "."


def _trim(q: float) -> str:
    return "q = 0 (as stated)" if q == 0 else f"q = {100 * q:g} %"


def _verdict(one: Bounds) -> str:
    failing = _failing(one)
    premise = f"{' and '.join(failing)} {'fails' if len(failing) == 1 else 'fail'}" if failing else "the conditions hold"
    return f"{premise}, and {_inequalities(one)}"


def _failing(one: Bounds) -> list[str]:
    """Name what does not hold of the theorem's premises, with the value."""
    parts = [
        (one.condition_1, f"condition (1) (sigma_1 = {_number(one.sigma_1)}, sigma_2 = {_number(one.sigma_2)})"),
        (one.condition_2, "condition (2)"),
        (one.a_in_range, f"1/4 < a < 3/4 (a = {_number(one.a)})"),
    ]
    return [text for holds, text in parts if not holds]


def _inequalities(one: Bounds) -> str:
    if one.b is None:
        return "the inequality cannot be tested: b is not positive"
    tested = [side for side in one.inequalities if side.left is not None]
    if not tested:
        return "no perturbation tried reaches any delta"
    holding = [side for side in tested if side.holds]
    if holding:
        return f"the inequality holds for delta = {', '.join(f'{side.delta:g}' for side in holding)}"
    nearest = min(tested, key=lambda side: (side.left or 0.0) / side.delta)
    return f"the inequality holds for no delta (nearest: {_number(nearest.left)} for delta = {nearest.delta:g})"


def _symbols(one: Bounds) -> list[str]:
    values = (_number(value) for value in (one.sigma_1, one.sigma_2, one.gradient, one.a, one.b))
    return [f"{100 * one.q:g}", *values, _answer(one.condition_1), _answer(one.condition_2), _answer(one.a_in_range)]


def _sides(q: float, side: Inequality) -> list[str]:
    found = [_number(side.sigma), _number(side.left), _answer(side.holds)]
    measured = [_percent(side.protect_share), _percent(side.triggered_share), _answer(side.concludes)]
    return [f"{100 * q:g}", f"{side.delta:g}", *found, *measured]


def _number(value: float | None) -> str:
    return "--" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.2f}"


def _answer(value: bool | None) -> str:
    return "--" if value is None else "yes" if value else "no"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)
