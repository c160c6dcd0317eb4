"""The claims, on the paper's own numbers and on hand-made records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from rapbench.cost import Cost
from rapbench.report import published
from rapbench.report.claims import CLAIMS, claims
from rapbench.results import Record

OURS = {name: ours for names in (published.DATASETS, published.ATTACKS, published.DEFENSES) for ours, name in names.items()}
VICTIM = "bert-base-uncased"
OK = Record(dataset="imdb", attack="ep", defense="rap", victim=VICTIM, seed=1, frr=0.01, protocol="paper", status="ok")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the claims need of a probe."""

    dataset: str = "amazon"
    setting: str = "main"
    poisoned_on: str | None = None
    tuning: str | None = None
    attack: str = "badnet-rw"
    victim: str = VICTIM
    seed: int = 1
    source: str = "dataset"
    general: str = "wikitext-103"
    count: int = 20_000
    length: int = 200
    status: str = "ok"
    reason: str | None = None
    asr: float | None = 1.0
    n: int | None = None
    trigger: str | None = None


def fraction(text: str) -> float | None:
    return float(text) / 100 if text else None


def of_row(row: dict[str, str], **more: object) -> Record:
    """Give the record that a row of the paper would be."""
    tuned = row["target_dataset"] != row["poisoned_dataset"]
    named = replace(
        OK,
        dataset=OURS[row["target_dataset"]],
        setting="fine-tuned" if tuned else "main",
        poisoned_on=OURS[row["poisoned_dataset"]] if tuned else None,
        tuning=VICTIM if tuned else None,
        attack=OURS[row["attack"]],
    )
    return replace(named, **more)


@pytest.fixture(scope="module")
def papers() -> list[Record]:
    """Give the paper's own numbers as records, with Table 9's k as if chosen on held-out texts."""
    records = []
    for row in (row for number in (10, 11, 12) for row in published.table(number)):
        figures = {"frr_test": fraction(row["frr_test"]), "far": fraction(row["far_test"])}
        records.append(of_row(row, defense=OURS[row["defense"]], frr=float(row["frr_train"]) / 100, **figures))
    for row in published.table(7):
        records.append(of_row(row, defense="none", clean_metric=fraction(row["clean_metric"])))
    for row in published.table(9):
        notes = {"replace_ratio": float(row["best_replace_ratio"]), "replace_ratio_from": "heldout"}
        records.append(of_row(row, defense="strip", frr=0.02, notes=notes))
    return records


@pytest.fixture(scope="module")
def papers_probes() -> list[Asked]:
    sources = {name: ours for ours, name in published.SOURCES.items()}
    attacks = {"BadNet": "badnet-rw", "EP": "ep"}
    return [
        Asked(attack=attacks[row["attack"]], source=sources[row["probe_text"]], asr=fraction(row["asr_mean"])) for row in published.table(1)
    ]


def verdict(number: int, records: list[Record], probes: list[Asked] | None = None) -> tuple[str, str]:
    told = claims(records, probes or [])[number - 1]
    assert told.number == number
    return told.state, told.reason


# The paper's own numbers


def test_the_paper_holds_its_own_claims(papers, papers_probes):
    states = [one.state for one in claims(papers, papers_probes)]
    assert states == ["held"] * 7 + ["not testable", "held"]  # it prints no counted costs


def test_rap_is_lowest_everywhere_up_to_1_per_cent_and_not_in_four_rows_above(papers):
    """42 rows at 0.5 and 1 %, two of them without ONION; above, f.2.5 of the reference names the four exceptions."""
    state, reason = verdict(1, papers)
    assert (state, reason.split("; ")[0]) == ("held", "RAP lowest in 40 of 40")
    beyond = reason.partition("not in: ")[2]
    assert beyond == (
        "imdb ep 3 % (RAP 0.48, STRIP 0.29), imdb ep 5 % (RAP 0.46, STRIP 0.16), "
        "amazon->imdb ripples 3 % (RAP 5.86, STRIP 5.60), amazon->imdb ripples 5 % (RAP 3.17, STRIP 0.20)"
    )


def test_of_all_84_rows_of_the_paper_four_have_a_lower_far_than_rap_s():
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for row in (row for number in (10, 11, 12) for row in published.table(number) if row["far_test"]):
        key = tuple(row[name] for name in ("target_dataset", "poisoned_dataset", "attack", "frr_train"))
        rows.setdefault(key, {})[row["defense"]] = float(row["far_test"])
    assert len(rows) == 84
    assert [key for key, fars in rows.items() if fars["RAP"] > min(fars.values())] == [
        ("IMDB", "IMDB", "EP", "3.0"),
        ("IMDB", "IMDB", "EP", "5.0"),
        ("IMDB", "Amazon", "RIPPLES", "3.0"),
        ("IMDB", "Amazon", "RIPPLES", "5.0"),
    ]


# Nothing, little, and what does not count


@pytest.mark.parametrize(
    "records",
    [
        [],
        [replace(OK, status="failed", reason="it broke")],
        [replace(OK, protocol="strict", far=0.1)],
        [replace(OK, attack="other", far=0.1)],
    ],
)
def test_without_figures_nothing_is_testable_and_each_says_what_is_missing(records):
    told = claims(records, [])
    assert [one.number for one in told] == list(CLAIMS) == list(range(1, 10))
    assert {one.state for one in told} == {"not testable"}
    assert all(one.reason.startswith("missing: ") for one in told)


def test_a_failed_probe_does_not_count():
    probes = [Asked(source=source, status="failed", asr=None) for source in ("dataset", "general", "random")]
    assert verdict(7, [], probes)[0] == "not testable"


# 1


def three(rap: float, strip: float, onion: float, **more: object) -> list[Record]:
    return [replace(OK, defense=name, far=far, **more) for name, far in (("rap", rap), ("strip", strip), ("onion", onion))]


def test_a_lower_far_of_another_is_counted_and_named():
    records = [*three(0.121, 0.033, 0.5), *three(0.1, 0.2, 0.3, attack="badnet-rw")]
    assert verdict(1, records) == ("not held", "RAP lowest in 1 of 2; not in: imdb ep 1 % (RAP 12.10, STRIP 3.30)")


def test_a_tie_counts_for_rap():
    assert verdict(1, three(0.1, 0.1, 0.1)) == ("held", "RAP lowest in 1 of 1")


def test_two_defenses_are_no_three():
    assert verdict(1, three(0.1, 0.2, 0.3)[:2])[0] == "not testable"


def test_the_mean_over_the_seeds_counts():
    """RAP 0.1 and 0.3, mean 0.2; the others 0.15 and 0.35, mean 0.25."""
    records = [*three(0.1, 0.15, 0.35), *three(0.3, 0.35, 0.15, seed=2)]
    assert verdict(1, records) == ("held", "RAP lowest in 1 of 1")


def test_the_shortest_spec_speaks_for_a_defense():
    records = [*three(0.1, 0.2, 0.3), replace(OK, defense="rap:recipe=steady", far=0.9)]
    assert verdict(1, records)[0] == "held"


def test_different_caps_are_different_victims():
    records = [*three(0.1, 0.2, 0.3, dataset="imdb:max_train=5"), *three(0.9, 0.2, 0.95)]
    state, reason = verdict(1, records)
    assert state == "not held"
    assert reason == f"RAP lowest in 1 of 2; not in: {VICTIM}, imdb, ep 1 % (RAP 90.00, STRIP 20.00)"


def test_six_examples_are_named_and_the_others_counted():
    records = [one for number in range(9) for one in three(0.5, 0.1, 0.6, dataset=f"set{number}")]
    reason = verdict(1, records)[1]
    assert reason.startswith("RAP lowest in 0 of 9; not in: set0 ep 1 %")
    assert reason.count("STRIP") == 6
    assert reason.endswith(" and 3 more")


# 2 and 3


def test_onion_must_let_more_than_90_per_cent_of_sentences_through():
    own = replace(OK, attack="badnet-sl", defense="onion", far=0.9)
    assert verdict(2, [own]) == ("not held", "above 90 % in 0 of 1; not in: imdb badnet-sl 1 % (90.00)")
    assert verdict(2, [replace(own, far=0.91)])[0] == "held"
    assert verdict(2, [replace(own, dataset="demo")])[0] == "not testable"
    assert verdict(2, [replace(own, frr=0.03)])[0] == "not testable"


def test_onion_is_much_worse_where_its_far_is_at_least_twice():
    def fars(toxic: float) -> list[Record]:
        """Sentiment: 10 and 30 %, mean 20 %."""
        own = [replace(OK, defense="onion", far=0.1), replace(OK, defense="onion", attack="badnet-rw", far=0.3)]
        return [*own, replace(OK, defense="onion", dataset="jigsaw", far=toxic)]

    assert verdict(3, fars(0.4))[0] == "held"
    assert verdict(3, fars(0.39)) == ("not held", f"at least twice in 0 of 1; not in: {VICTIM} (toxic 39.00, sentiment 20.00)")
    assert verdict(3, fars(0.4)[:2])[0] == "not testable"


# 4


def strip(k: float, far: float, dataset: str = "imdb") -> Record:
    return replace(OK, dataset=dataset, attack="badnet-sl", defense=f"strip:replace_ratio={k:g}", far=far)


def test_a_sweep_over_k_is_needed_for_a_best_k():
    assert verdict(4, [strip(0.05, 0.1)])[0] == "not testable"
    assert verdict(4, [strip(0.1, 0.1), strip(0.4, 0.2)])[0] == "not testable"  # 0.05 was not tried
    assert verdict(4, [strip(0.05, 0.1), strip(0.4, 0.2)]) == ("held", "as the paper's in 1 of 1")


def test_jigsaw_is_the_exception_of_the_best_k():
    records = [strip(0.05, 0.3), strip(0.4, 0.2), strip(0.05, 0.3, "jigsaw"), strip(0.6, 0.2, "jigsaw")]
    assert verdict(4, records) == ("not held", "as the paper's in 1 of 2; not in: imdb badnet-sl (k 0.4)")


# 5


def test_the_test_frr_may_be_half_to_twice_the_allowed():
    for own, state in ((0.005, "held"), (0.02, "held"), (0.0049, "not held"), (0.0201, "not held")):
        assert verdict(5, [replace(OK, frr_test=own, n_clean=1000)])[0] == state


def test_too_few_clean_texts_say_nothing_of_the_frr():
    """499 x 1 % is below 5 expected rejections."""
    few = replace(OK, frr_test=0.0, n_clean=499)
    assert verdict(5, [few])[0] == "not testable"
    enough = replace(few, dataset="yelp", frr_test=0.01, n_clean=500)
    assert verdict(5, [few, enough]) == ("held", "within in 1 of 1; not counted: 1 with fewer than 5 expected rejections")


# 6


def test_ep_may_change_the_clean_metric_by_half_a_point():
    clean = replace(OK, attack="clean", clean_metric=0.9)
    for own, state in ((0.895, "held"), (0.905, "held"), (0.894, "not held")):
        assert verdict(6, [clean, replace(OK, clean_metric=own)])[0] == state
    assert verdict(6, [clean, replace(OK, clean_metric=0.89)])[1].endswith("not in: imdb ep (-1.00 points)")
    assert verdict(6, [clean, replace(OK, clean_metric=0.9, seed=2)])[0] == "not testable"
    assert verdict(6, [clean, replace(OK, clean_metric=0.9, dataset="imdb:max_train=5")])[0] == "not testable"


# 7


def asked(*asrs: float) -> list[Asked]:
    return [Asked(source=source, asr=asr) for source, asr in zip(("dataset", "general", "random"), asrs, strict=False)]


def test_probes_must_be_high_and_in_order():
    assert verdict(7, [], asked(1.0, 0.998, 0.995)) == ("held", "high and in order in 1 of 1")
    assert verdict(7, [], asked(1.0, 0.998, 0.994))[0] == "not held"
    assert verdict(7, [], asked(0.997, 0.998, 0.996)) == (
        "not held",
        "high and in order in 0 of 1; not in: amazon badnet-rw (99.70, 99.80, 99.60)",
    )
    assert verdict(7, [], asked(1.0, 0.998))[0] == "not testable"


# 8


def cost(defense: str, rows: float, lm: float | None = None) -> Record:
    return replace(
        OK,
        defense=defense,
        cost=Cost(
            inputs=10,
            fit_s=0.0,
            victim_rows_per_input=rows,
            victim_tokens_per_input=0.0,
            helper_rows_per_input={} if lm is None else {"lm": lm},
        ),
    )


def test_the_counted_costs_are_the_paper_s():
    good = [cost("rap", 2.0), cost("strip:copies=10", 11.0), cost("onion", 1.5, 33.0)]
    state, reason = verdict(8, good)
    assert state == "held"
    assert "ONION 1.5 + 33.0, RAP 2.0 for 2, STRIP 11.0 for 11" in reason
    assert verdict(8, [cost("rap", 3.0), *good[1:]])[0] == "not held"
    assert verdict(8, [good[0], cost("strip", 11.0), good[2]])[0] == "not held"  # by default there are 20 copies
    assert verdict(8, [*good[:2], cost("onion", 1.5)])[0] == "not held"


def test_two_defenses_alone_do_not_confirm_the_costs_but_can_refute_them():
    assert verdict(8, [cost("rap", 2.0), cost("strip", 21.0)])[1].startswith("missing: costs of ONION")
    assert verdict(8, [cost("rap", 3.0)])[0] == "not held"


def test_a_cost_of_no_text_is_none():
    empty = replace(OK, cost=Cost(inputs=0, fit_s=0.0, victim_rows_per_input=1.0, victim_tokens_per_input=0.0))
    assert verdict(8, [empty])[0] == "not testable"


# 9


def tuned(home: str, attack: str, far: float) -> Record:
    target = "twitter" if home == "jigsaw" else "imdb"
    return replace(OK, dataset=target, setting="fine-tuned", poisoned_on=home, tuning=VICTIM, attack=attack, far=far)


def test_ripples_must_pass_more_often_from_both_data_sets():
    amazon = [tuned("amazon", "ripples", 0.09), tuned("amazon", "badnet-sl", 0.006)]
    jigsaw = [tuned("jigsaw", "ripples", 0.04), tuned("jigsaw", "badnet-sl", 0.0)]
    assert verdict(9, [*amazon, *jigsaw]) == ("held", "higher for RIPPLES in 2 of 2")
    state, reason = verdict(9, amazon)
    assert (state, reason) == (
        "not testable",
        "missing: FARs of RAP at 1 % against ripples and badnet-sl, poisoned on jigsaw, then fine-tuned",
    )
    assert verdict(9, [tuned("amazon", "ripples", 0.006), tuned("amazon", "badnet-sl", 0.006)])[0] == "not held"
