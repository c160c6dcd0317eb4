"""CUBE: the poisoned texts of a label lie in a cluster of their own, away from the label's clean ones.

Cui et al., "A Unified Evaluation of Textual Backdoor Learning: Frameworks and Benchmarks" (NeurIPS 2022, Datasets and Benchmarks,
arXiv:2206.08514), and its released code (thunlp/OpenBackdoor). The states of all training texts together are reduced and clustered by
HDBSCAN; of each label the largest group is kept and all others are left out. Noise is a group like any other, as in that code: it is
left out, unless it is the label's largest group. Groups of equal size stay, which that code says of two halves alone.

There a fresh RoBERTa is trained on the suspicious set first; here the received victim is that model. There the states went through the
pooler; here they are what the head reads of the last layer, before it. `reduction=umap` is the published way: 20 principal components, then
UMAP to 2 units, which needs numba. Ours: `tsne`, its nearest kin in scikit-learn, for up to some ten thousand texts; and `pca`, the
components alone, which is fast, but sees what lies far apart and not what lies apart among neighbours.

Fewer poisoned texts than `min_samples` are no cluster; then they are noise, or part of another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rapbench.api import Defense, Filter, Work, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.victim import Victim

TEXTS_AT_ONCE = 1024
MIN_CLUSTER = 5
"""Texts of a cluster, at least: the default of the `hdbscan` that the released code calls."""
NEIGHBOURS = 100
"""Neighbours of a text that UMAP looks at, as in the released code; t-SNE looks at three times its perplexity."""
NOISE = -1


@dataclass(frozen=True, kw_only=True)
class Cube(Defense):
    """Leaves out training texts that are not in the largest cluster of their label."""

    name: ClassVar[str] = "cube"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "training"
    reduction: Literal["pca", "tsne", "umap"] = option(
        "pca", "principal components alone, or t-SNE or UMAP after them (published; pip install 'rapbench[cube]')"
    )
    components: int = option(20, "principal components")
    min_samples: int = option(100, "the neighbour whose distance is a text's density, for HDBSCAN; of fewer texts the last one")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("components", "min_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")
        if self.reduction != "pca" and self.components < 2:
            raise ValueError(f"components={self.components!r} leaves nothing to reduce: give 2 or more, or reduction=pca")

    def learns_from_protect_texts(self) -> bool:
        return False

    def expected_work(self, words: float, heldout: int) -> Work:
        return Work(1, training_rows=1)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> CubeFilter:
        """Give the filter; a CellError where UMAP is asked for and not installed."""
        if self.reduction == "umap":
            _umap_class()
        return CubeFilter(self, victim, lab)


@dataclass
class CubeFilter(Filter):
    """CUBE on the victim that was trained on the suspicious set. `found`: how the last set fell into groups, for the notes."""

    options: Cube
    victim: Victim
    lab: Lab
    found: dict[str, int] = field(default_factory=dict)

    def poisoned(self, training: Labelled) -> NDArray[np.bool_]:
        """Tell which texts are not in the largest group of their label, shape (n,)."""
        if len(training.texts) <= MIN_CLUSTER:
            groups = _noise(len(training.texts))
        else:
            groups = clusters(self.reduced(last_states(self.victim, training.texts)), self.options.min_samples)
        self.found = {"clusters": len(set(groups.tolist()) - {NOISE}), "noise": int((groups == NOISE).sum())}
        return small_groups(groups, training.labels)

    def reduced(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the principal components, shape (n, components), or what UMAP or t-SNE makes of them, shape (n, 2)."""
        import numpy as np

        points = principal(states, self.options.components)
        if self.options.reduction == "pca" or not points.any():
            return points
        seed = int(self.lab.rng("cube/reduction").integers(2**31))
        reducer = _tsne(len(points), seed) if self.options.reduction == "tsne" else _umap(len(points), seed)
        return np.asarray(reducer.fit_transform(points), dtype=np.float64)

    def notes(self) -> Mapping[str, Any]:
        return self.found


def last_states(victim: Victim, texts: Sequence[str]) -> NDArray[np.float32]:
    """Give the last layer's states, shape (n, units), with few of other layers in memory; a CellError where they are no numbers."""
    import numpy as np

    from rapbench.errors import CellError

    parts = [victim.states(texts[start : start + TEXTS_AT_ONCE])[:, -1] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    states: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(states).all():
        raise CellError("cube: the victim's states are not numbers: give its training a lower lr")
    return states


def principal(states: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """Give the states along the axes of their greatest variance, shape (n, count), or (n, units) where there are fewer units."""
    import numpy as np

    centred = states - states.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)  # (units, units), the axis of the greatest variance last
    points: NDArray[np.float64] = centred @ axes[:, ::-1][:, :count]
    return points


def clusters(points: NDArray[np.float64], min_samples: int) -> NDArray[np.int64]:
    """Give the cluster of each point by HDBSCAN, shape (n,); of noise it is -1."""
    import numpy as np
    from sklearn.cluster import HDBSCAN

    # scikit-learn counts a point as its own first neighbour; the `hdbscan` of the released code does not
    neighbour = min(min_samples + 1, len(points))
    return np.asarray(HDBSCAN(min_cluster_size=MIN_CLUSTER, min_samples=neighbour, copy=True).fit_predict(points), dtype=np.int64)


def small_groups(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows are in a group that is smaller than the largest one of their label, shape (n,)."""
    import numpy as np

    small = np.zeros(len(groups), dtype=np.bool_)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        _, which, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
        small[rows] = sizes[which] < sizes.max()
    return small


def _noise(n: int) -> NDArray[np.int64]:
    import numpy as np

    return np.full(n, NOISE, dtype=np.int64)


def _tsne(n: int, seed: int) -> Any:
    from sklearn.manifold import TSNE

    return TSNE(2, perplexity=min(NEIGHBOURS, n - 1) / 3, init="pca", random_state=seed)


def _umap(n: int, seed: int) -> Any:
    return _umap_class()(n_neighbors=min(NEIGHBOURS, n - 1), min_dist=0.0, n_components=2, random_state=seed, n_jobs=1)


def _umap_class() -> Any:
    """Give the class UMAP; a CellError where it is not installed."""
    import importlib

    from rapbench.errors import CellError

    try:
        return importlib.import_module("umap").UMAP
    except ImportError as error:
        raise CellError("cube: reduction='umap' needs umap-learn: pip install 'rapbench[cube]', or give another reduction") from error
