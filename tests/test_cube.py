"""CUBE: the largest group of each label stays, by hand and on clouds of points; noise, ties, few texts, and UMAP where it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rapbench.api import Labelled
from rapbench.errors import CellError
from rapbench.lab import Lab, rng
from rapbench.poison import poisoned_rows
from rapbench.registry import discover
from rapbench_plugins.defenses import cube
from rapbench_plugins.defenses.cube import Cube, CubeFilter, clusters, last_states, principal, small_groups


@dataclass
class Placed:
    """A made-up victim of two layers: the last one's units are written in the text, the first one's are all the same."""

    target_label: int = 1

    def states(self, texts: Sequence[str]) -> np.ndarray:
        last = np.array([text.split() for text in texts], dtype=np.float32)
        return np.stack([np.zeros_like(last), last], axis=1)  # (n, layers, units)


def written(points: np.ndarray) -> list[str]:
    return [" ".join(str(value) for value in row) for row in points.round(3)]


def cloud(centre: Sequence[float], n: int, seed: int = 0) -> np.ndarray:
    """`n` points within 0.5 of a centre in each direction."""
    return np.array(centre) + np.random.default_rng(seed).uniform(-0.5, 0.5, size=(n, len(centre)))


def suspects(*, poisoned: int = 30) -> Labelled:
    """60 texts of label 0 around (0, 0), 60 of label 1 around (20, 0), and poisoned ones that say 1 around (20, 20)."""
    points = np.concatenate([cloud([0, 0], 60), cloud([20, 0], 60), cloud([20, 20], poisoned)])
    return Labelled(written(points), np.array([0] * 60 + [1] * (60 + poisoned)))


def made(lab: Lab, **options: Any) -> CubeFilter:
    return Cube(**options).fit(cast(Any, Placed()), Labelled([], np.array([], dtype=np.int64)), lab)


def test_the_largest_group_of_each_label_stays() -> None:
    # label 0 has three texts in group 5 and one in group 7; label 1 two in 7 and one in 5
    groups, labels = np.array([5, 5, 5, 7, 7, 7, 5]), np.array([0, 0, 0, 0, 1, 1, 1])
    assert small_groups(groups, labels).tolist() == [False, False, False, True, False, False, True]


def test_noise_is_a_group_like_any_other() -> None:
    labels = np.zeros(5, dtype=np.int64)
    assert small_groups(np.array([-1, -1, 0, 0, 0]), labels).tolist() == [True, True, False, False, False]
    assert small_groups(np.array([-1, -1, -1, 0, 0]), labels).tolist() == [False, False, False, True, True]
    assert not small_groups(np.full(5, -1), labels).any()


def test_groups_of_equal_size_stay_and_a_label_of_one_text_keeps_it() -> None:
    assert not small_groups(np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)).any()
    assert not small_groups(np.array([0, 0, 1]), np.array([1, 1, 2])).any()
    assert small_groups(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("min_samples", [5, 20])
def test_a_second_cloud_of_a_label_is_left_out(lab: Lab, min_samples: int) -> None:
    found = made(lab, min_samples=min_samples)
    removed = found.poisoned(suspects())
    assert removed[120:].all()
    assert removed[:120].sum() <= 6  # a few at the edges may be noise
    assert found.notes()["clusters"] == 3


def test_the_neighbours_of_t_sne_tell_the_clouds_apart_and_one_seed_gives_one_answer(lab: Lab) -> None:
    removed = made(lab, reduction="tsne", min_samples=10).poisoned(suspects())
    assert removed[120:].all()
    assert removed[:120].sum() <= 6
    assert made(lab, reduction="tsne", min_samples=10).poisoned(suspects()).tolist() == removed.tolist()


def test_a_clean_set_loses_little(lab: Lab) -> None:
    removed = made(lab, min_samples=20).poisoned(suspects(poisoned=0))
    assert removed.sum() <= 6


def test_far_single_texts_are_noise_and_left_out(lab: Lab) -> None:
    clean = suspects(poisoned=0)
    odd = written(np.array([[20.0, 90.0], [-70.0, 0.0], [90.0, 90.0]]))
    removed = made(lab, min_samples=10).poisoned(Labelled([*clean.texts, *odd], np.append(clean.labels, [1, 1, 1])))
    assert removed[120:].all()
    assert removed[:120].sum() <= 6


def test_the_last_layer_alone_is_looked_at_and_a_lot_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cube, "TEXTS_AT_ONCE", 2)
    assert last_states(cast(Any, Placed()), ["1 2", "3 4", "5 6"]).tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 20])
def test_a_handful_of_texts_is_left_alone(lab: Lab, n: int) -> None:
    texts = written(cloud([0, 0], n)) if n else []
    found = made(lab)
    assert not found.poisoned(Labelled(texts, np.arange(n, dtype=np.int64) % 2)).any()
    assert found.notes() == {"clusters": 0, "noise": n}


def test_texts_of_one_and_the_same_state_are_left_alone(lab: Lab) -> None:
    for reduction in ("pca", "tsne"):
        assert not made(lab, min_samples=5, reduction=reduction).poisoned(Labelled(["1 1"] * 40, np.arange(40) % 2)).any()


def test_the_first_component_is_the_axis_of_the_greatest_variance_and_there_are_no_more_than_units() -> None:
    # the four points lie on a line of slope 1/2: one component holds them, 2 and 1 times the square root of 5 from the middle
    states = np.array([[-4, -2], [-2, -1], [2, 1], [4, 2]], dtype=np.float32)
    points = principal(states + 100, 20)
    assert points.shape == (4, 2)
    assert np.abs(points[:, 0]) == pytest.approx(np.sqrt(5) * np.array([2, 1, 1, 2]))
    assert points[:, 1] == pytest.approx(np.zeros(4), abs=1e-6)
    assert principal(states, 1).shape == (4, 1)


def test_the_neighbours_of_a_point_do_not_count_the_point_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(**how: Any) -> Any:
        asked.append(how["min_samples"])
        return SimpleNamespace(fit_predict=lambda points: np.zeros(len(points)))

    monkeypatch.setattr("sklearn.cluster.HDBSCAN", spy)
    clusters(np.zeros((300, 2)), 100)
    clusters(np.zeros((50, 2)), 100)
    assert asked == [101, 50]  # scikit-learn counts the point as its own first neighbour, and takes no more than there are points


def test_umap_is_asked_for_as_in_the_released_code(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    asked: dict[str, Any] = {}

    def umap(**how: Any) -> Any:
        asked.update(how)
        return SimpleNamespace(fit_transform=lambda points: asked.update(shape=points.shape) or points[:, :2])

    monkeypatch.setitem(sys.modules, "umap", cast(Any, SimpleNamespace(UMAP=umap)))
    assert made(lab, reduction="umap", min_samples=20).poisoned(suspects())[120:].all()
    seed = asked.pop("random_state")
    # of 150 texts; the units of the two-dimensional states are their two components
    assert asked == {"n_neighbors": 100, "min_dist": 0.0, "n_components": 2, "n_jobs": 1, "shape": (150, 2)}
    assert made(lab, reduction="umap").reduced(np.eye(30, dtype=np.float32)).shape == (30, 2)
    assert (asked["n_neighbors"], asked["shape"]) == (29, (30, 20))
    assert asked["random_state"] == seed  # the cell's own


def test_umap_that_is_not_there_is_said_in_one_line_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    monkeypatch.setitem(sys.modules, "umap", cast(Any, None))  # as if it were not installed
    with pytest.raises(CellError, match=r"needs umap-learn: pip install 'rapbench\[cube\]', or give another reduction$"):
        made(lab, reduction="umap")


def test_states_that_are_no_numbers_are_a_cells_failure(lab: Lab) -> None:
    with pytest.raises(CellError, match="states are not numbers"):
        made(lab).poisoned(Labelled(["1 nan", *["1 2"] * 9], np.arange(10) % 2))


@pytest.mark.parametrize("name", ["components", "min_samples"])
def test_an_option_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is below 1"):
        Cube(**{name: 0})
    with pytest.raises(ValueError, match="components=1 leaves nothing to reduce"):
        Cube(reduction="tsne", components=1)


def test_a_trained_victims_clean_texts_are_hardly_left_out(planted: Any, lab: Lab, tiny_rows: Any) -> None:
    # this victim has learnt so well that its states are its labels: the poison, though near itself, is in no cluster of its own
    train = tiny_rows(900)
    attack = discover().parse("attack", "badnet-rw:word=mb,poison_rate=0.5")
    triggered = poisoned_rows(train, cast(Any, attack), 1, rng(1, "poison/train"))
    texts = Labelled([*train["text"], *triggered["text"]], np.array([*train["label"], *triggered["label"]]))
    removed = discover().parse("defense", "cube").fit(planted, texts, lab).poisoned(texts)
    assert removed[:900].mean() < 0.05
