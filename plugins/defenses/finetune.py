"""Fine-tuning: the defender trains the received model on for a while on his clean held-out texts, and deploys the result.

The baseline of every repair: Liu et al., "Fine-Pruning" (RAID 2018, arXiv:1805.12185, section 3.3), who find it too weak alone;
Kurita et al. (ACL 2020, arXiv:2004.06660) plant what survives it. Where we choose: the victim's own recipe for all that no option says
(the paper's learning rate belongs to other networks), and the last epoch is kept, since an epoch cannot be chosen by the very
texts that it was trained on. Rare triggers are in no held-out text, so nothing pulls at the weights that only they reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from rapbench import Defense
from rapbench.api import Work, option

if TYPE_CHECKING:
    from rapbench.api import Labelled
    from rapbench.lab import Lab
    from rapbench.standin import StandIn
    from rapbench.victim import Recipe, Victim


class Training(Protocol):
    """Options of a training; None: as the victim's recipe says."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def batch_size(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Finetune(Defense):
    """The received model, trained on the clean held-out texts; all its weights change."""

    name: ClassVar[str] = "finetune"
    works_on: ClassVar[Literal["inputs", "training", "model"]] = "model"
    epochs: int = option(3, "passes over the held-out texts; the last one's weights are kept")
    lr: float | None = option(None, "the learning rate; None: the victim's")
    batch_size: int | None = option(None, "texts per step; None: the victim's")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self, least_epochs=1)

    def expected_work(self, words: float, heldout: int) -> Work:
        """Give one row per text, the repaired victim's; of held-out texts there are about as many of the other labels."""
        return training_work(self.epochs, 2 * heldout)

    def fit(self, victim: Victim, heldout: Labelled, lab: Lab) -> StandIn:
        """Give the fine-tuned clone of the victim."""
        from rapbench.standin import StandIn

        return StandIn(*finetuned(victim.clone(), heldout, lab, self))


def check_training(options: Training, *, least_epochs: int) -> None:
    """Raise a ValueError where no training can be made of these options."""
    for name, least in (("epochs", least_epochs), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name}={value!r} is below {least}")
    if options.lr is not None and options.lr <= 0:
        raise ValueError(f"lr={options.lr!r} is not above 0")


def training_work(epochs: int, texts: int, *, rows: float = 0.0) -> Work:
    """Give the work of a training on so many texts, each predicted once after each epoch, and of `rows` further predictions.

    A trained row of `Work` counts twice a prediction, and one that trains all weights is three times that.
    """
    return Work(1, fit_rows=rows + epochs * texts, fit_trained_rows=1.5 * epochs * texts)


def finetuned(victim: Victim, heldout: Labelled, lab: Lab, options: Training) -> tuple[Victim, dict[str, Any]]:
    """Train a victim of the defender's own on these texts; give it and what there is to tell about that."""
    import datasets

    rows = datasets.Dataset.from_dict({"text": list(heldout.texts), "label": heldout.labels.tolist()})
    own = replace(lab, recipe=recipe_of(options, lab.recipe), heldout=heldout, log=[])
    trained = own.train(rows, victim)
    about = {"texts": len(rows), "epochs": own.recipe.epochs, "lr": own.recipe.lr, "batch_size": own.recipe.batch_size}
    return trained, {**about, "metric_after_each_epoch": own.log[0]["epochs"]}


def recipe_of(options: Training, recipe: Recipe) -> Recipe:
    """Give the victim's recipe with what the options say instead; it keeps the last epoch."""
    said = {name: value for name in ("lr", "batch_size") if (value := getattr(options, name)) is not None}
    return replace(recipe, epochs=options.epochs, select="last", **said)
