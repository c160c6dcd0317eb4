"""What a run would look like on nodes that are not there: small schedules drawn by hand, and what holds for all of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapbench.artifacts import Store
from rapbench.errors import ClusterError
from rapbench.estimate import Site, estimate
from rapbench.grid import Block, cells_of, read_blocks
from rapbench.registry import discover
from rapbench.runner.needs import needs as needs_of
from rapbench.runner.placement import Needs, Node
from rapbench.runner.session import planned
from rapbench.runner.simulate import STEP_S, alike, simulate
from rapbench.stages import Job

ONE = Needs(1)


def jobs(**inputs: str) -> dict[str, Job]:
    """Give jobs by name; a value lists the inputs, the stage before a colon: `s="score: v d"`."""
    found = {}
    for key, text in inputs.items():
        stage, _, after = text.partition(":")
        found[key] = Job(stage, key, {}, {("victim", "data", "poison")[n]: own for n, own in enumerate(after.split())}, f"of {key}")
    return found


def played(made, seconds, nodes, needs=ONE):
    each = needs if isinstance(needs, dict) else dict.fromkeys(made, needs)
    return simulate(made, seconds.__getitem__, nodes, lambda job: each[job.key])


FORK = jobs(d="data", a="victim: d", b="victim: d", s="score: a b")
FORK_S = {"d": 10, "a": 30, "b": 20, "s": 5}


def test_a_fork_runs_side_by_side_and_the_join_waits_for_the_longer_branch():
    found = played(FORK, FORK_S, alike(2, gpus=0, cpus=1))
    assert {step.key: (step.start_s, step.end_s) for step in found.steps} == {"d": (0, 10), "a": (10, 40), "b": (10, 30), "s": (40, 45)}
    assert [(step.key, step.waited) for step in found.path] == [("d", ""), ("a", "input"), ("s", "input")]
    at = {step.key: step.node for step in found.steps}
    assert at["a"] != at["b"]
    assert at["s"] == at["a"]  # beside its victim
    assert (found.makespan_s, found.chain_s, found.bound_s) == (45, 45, 45)
    assert found.utilisation(found.nodes) == pytest.approx((10 + 30 + 20 + 5) / (2 * 45))
    assert sorted(used.busy_s for used in found.nodes) in ([20, 45], [30, 35])  # d was beside a, or beside b


def test_on_one_node_the_branches_wait_for_each_other_s_slot():
    found = played(FORK, FORK_S, alike(1, gpus=0, cpus=1))
    assert [(step.key, step.waited) for step in found.path] == [("d", ""), ("a", "input"), ("b", "slot"), ("s", "input")]
    assert (found.makespan_s, found.chain_s, found.bound_s) == (65, 45, 65)
    assert found.utilisation(found.nodes) == 1
    assert found.lines()[-1].startswith("more nodes would help, by 31% at most")  # 20 s of 65


def test_a_chain_is_as_long_on_three_nodes_as_on_one():
    chain, seconds = jobs(a="data", b="poison: a", c="victim: b"), {"a": 10, "b": 20, "c": 30}
    for nodes in (1, 3):
        found = played(chain, seconds, alike(nodes, gpus=0, cpus=8))
        assert found.makespan_s == found.chain_s == found.bound_s == 60
        assert [step.key for step in found.path] == ["a", "b", "c"]
        assert found.lines()[-1] == "more nodes would not help: one chain of steps that need each other takes 60 s"


def test_what_more_steps_wait_for_goes_first_as_in_a_run():
    made = jobs(lone="score", d="data", v="victim: d")
    found = played(made, {"lone": 30, "d": 10, "v": 20}, alike(1, gpus=0, cpus=1))
    assert [step.key for step in found.steps] == ["d", "lone", "v"]  # only d has one that waits; then the plan's order


def test_an_exclusive_step_has_its_node_to_itself():
    three, seconds = jobs(a="score", b="score", x="score"), {"a": 10, "b": 10, "x": 10}
    needs = {"a": ONE, "b": ONE, "x": Needs(1, exclusive=True)}
    alone = played(three, seconds, alike(1, gpus=0, cpus=4), needs)
    assert {step.key: step.start_s for step in alone.steps} == {"a": 0, "b": 0, "x": 10}
    assert alone.bound_s == (10 + 10 + 4 * 10) / 4  # all four CPUs wait for x
    assert [(step.key, step.waited) for step in alone.path][1] == ("x", "slot")
    two = played(three, seconds, [Node("small", 1), *alike(1, gpus=0, cpus=4)], needs)
    assert two.makespan_s == 10
    assert {step.node for step in two.steps if step.key != "x"} & {step.node for step in two.steps if step.key == "x"} == set()


def test_gpus_are_shared_where_a_step_takes_half_of_one_and_their_use_is_what_counts():
    made, seconds = jobs(a="score", b="score", c="data"), {"a": 10, "b": 10, "c": 40}
    found = played(made, seconds, alike(1, gpus=1, cpus=8), {"a": Needs(1, 0.5), "b": Needs(1, 0.5), "c": ONE})
    assert {step.key: step.start_s for step in found.steps} == {"a": 0, "b": 0, "c": 0}
    assert found.utilisation(found.nodes) == pytest.approx(10 / 40)  # c computes on no GPU
    whole = played(made, seconds, alike(1, gpus=1, cpus=8), {"a": Needs(1, 1), "b": Needs(1, 1), "c": ONE})
    assert max(step.end_s for step in whole.steps if step.key != "c") == 20


def test_the_text_says_how_long_how_busy_what_the_end_waits_for_and_what_would_help():
    uneven = {"d": 10, "a": 200, "b": 20, "s": 30}
    found = played(FORK, uneven, alike(2, gpus=0, cpus=1))
    at = {step.key: step.node for step in found.steps}
    busy = {name: sum(uneven[key] for key in at if at[key] == name) / 240 for name in ("node-1", "node-2")}
    more, less = sorted(busy, key=lambda name: -busy[name])
    assert found.lines() == [
        "about 4.0 min on 2 nodes of 1 CPU; no schedule takes less than 4.0 min",
        f"CPUs busy 54% of the time ({more} {busy[more]:.0%}, {less} {busy[less]:.0%})",  # 260 s of 480
        "",
        "what the end waits for:",
        "step    of    node    start    takes    waited for",
        "------  ----  ------  -------  -------  ------------",
        f"data    of d  {at['d']}  0 s      10 s",
        f"victim  of a  {at['a']}  10 s     3.3 min  input",
        f"score   of s  {at['s']}  3.5 min  30 s     input",
        "",
        "more nodes would not help: one chain of steps that need each other takes 4.0 min",
    ]


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(2, 2), "victim of v needs 2 CPUs, 2 GPUs, and no node has that (there would be nodes of 4 CPUs, 1 GPU)"),
        (Needs(5), "victim of v needs 5 CPUs, and no node has that (there would be nodes of 4 CPUs, 1 GPU)"),
    ],
)
def test_a_step_that_fits_on_no_node_is_named_with_what_it_needs(needs, said):
    with pytest.raises(ClusterError, match=re.escape(said)):
        played(jobs(v="victim"), {"v": 1}, alike(3, gpus=1, cpus=4), needs)


def test_no_step_is_free():
    found = played(jobs(d="data", p="poison: d"), {"d": 0, "p": 0}, alike(1, gpus=0, cpus=1))
    assert found.makespan_s == 2 * STEP_S


def test_nothing_to_run_takes_no_time_and_has_nothing_to_say():
    found = played({}, {}, alike(2, gpus=0, cpus=1))
    assert (found.makespan_s, found.bound_s, found.path, found.lines()) == (0, 0, [], [])
    assert json.loads(json.dumps(found.plain()))["utilisation"] == 0


def test_a_long_critical_path_shows_its_longest_links_in_their_order():
    names = [f"j{number}" for number in range(20)]
    made = jobs(**{name: "score" if name == "j0" else f"score: j{number}" for number, name in enumerate(names, -1)})
    said = played(made, {name: 1 + (name in names[15:]) for name in names}, alike(1, gpus=0, cpus=1)).lines()
    shown = [line.split()[2] for line in said if line.startswith("score")]
    assert shown == [*names[:7], *names[15:]]  # of the short ones the first
    assert "and 8 shorter ones of 8 s in all" in said


def test_the_json_says_when_and_where_each_step_runs_and_names_the_critical_path():
    found = json.loads(json.dumps(played(FORK, FORK_S, alike(2, gpus=0, cpus=1)).plain()))
    assert (found["makespan_s"], found["bound_s"], found["chain_s"], found["utilisation"]) == (45, 45, 45, 0.7222)
    assert found["path"] == ["d", "a", "s"]
    last = found["steps"][-1]
    assert (last["key"], last["stage"], last["label"], last["waited"], last["after"]) == ("s", "score", "of s", "input", "a")
    assert (last["start_s"], last["seconds"], last["end_s"]) == (40, 5, 45)
    assert {node["name"]: node["cpus"] for node in found["nodes"]} == {"node-1": 1, "node-2": 1}


def test_ten_thousand_steps_fill_a_hundred_slots_a_hundred_times():
    made = jobs(**{f"j{number}": "score" for number in range(10_000)})
    found = played(made, dict.fromkeys(made, 2.0), alike(10, gpus=0, cpus=10))
    assert (found.makespan_s, found.bound_s) == (200, 200)
    assert found.utilisation(found.nodes) == 1
    assert len(found.path) == 100
    assert {step.waited for step in found.path[1:]} == {"slot"}


def test_the_demo_grid_on_one_core_takes_as_long_as_all_its_steps_and_on_two_about_half(tmp_path):
    registry = discover()
    plan, bench = planned(cells_of(read_blocks("demo", Block), registry), registry, tmp_path, device="cpu", threads=1)
    store = Store(bench.store)
    expected = estimate(plan.jobs, plan.jobs, registry, Site(store, tflops=0.01))
    one, two = (simulate(plan.jobs, expected.seconds, alike(1, 0, cpus), lambda job: needs_of(job, bench)) for cpus in (1, 2))
    assert one.makespan_s == pytest.approx(sum(max(expected.seconds(key), STEP_S) for key in plan.jobs))
    assert 0.5 <= two.makespan_s / one.makespan_s < 0.6  # no chain rules: there are four victims and nine scores


NEEDS = st.sampled_from([ONE, Needs(2), Needs(1, 0.5), Needs(1, 1), Needs(2, 2), Needs(1, exclusive=True), Needs(1, 1, exclusive=True)])
NODES = st.lists(st.builds(lambda cpus, gpus: (cpus, gpus), st.integers(1, 4), st.integers(0, 3)), max_size=4)


@st.composite
def runs(draw):
    """Give jobs in an order in which they can run, each with up to three of those before it as inputs."""
    made = {}
    for number in range(draw(st.integers(1, 25))):
        before = draw(st.lists(st.sampled_from(sorted(made)), max_size=3, unique=True)) if made else []
        stage = draw(st.sampled_from(["data", "victim", "score"]))
        made[f"j{number}"] = Job(stage, f"j{number}", {}, dict(zip(("victim", "data", "poison"), before, strict=False)), "")
    nodes = [Node("large", 4, 2), *(Node(f"n{number}", *size) for number, size in enumerate(draw(NODES)))]
    return made, {key: draw(st.integers(1, 50)) for key in made}, nodes, {key: draw(NEEDS) for key in made}


@settings(max_examples=60)
@given(runs())
def test_every_schedule_is_possible_and_between_its_bound_and_one_step_after_the_other(run):
    made, seconds, nodes, needs = run
    found = played(made, seconds, nodes, needs)
    assert sorted(step.key for step in found.steps) == sorted(made)
    assert found.bound_s <= found.makespan_s + 1e-6
    assert found.chain_s <= found.makespan_s <= sum(seconds.values())
    ends = {step.key: step.end_s for step in found.steps}
    for step in found.steps:
        assert step.start_s >= max((ends[own] for own in made[step.key].inputs.values()), default=0)
        beside = [needs[one.key] for one in found.steps if one.node == step.node and one.start_s <= step.start_s < one.end_s]
        node = next(node for node in nodes if node.name == step.node)
        assert sum(own.cpus for own in beside) <= node.cpus
        assert sum(own.gpus for own in beside) <= node.gpus
        assert len(beside) == 1 or not any(own.exclusive for own in beside)


@settings(max_examples=60)
@given(runs())
def test_the_critical_path_leaves_no_gap_from_the_start_to_the_end(run):
    made, seconds, nodes, needs = run
    found = played(made, seconds, nodes, needs)
    path = found.path
    assert path[0].start_s == 0
    assert path[-1].end_s == found.makespan_s
    for one, other in pairwise(path):
        assert (one.key, one.end_s) == (other.after, other.start_s)
        assert (other.waited == "input") <= (one.key in made[other.key].inputs.values())
