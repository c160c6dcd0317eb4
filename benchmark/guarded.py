"""A `transformers` pipeline whose answers carry a guard's verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rapbench.errors import DataError, VictimError
from rapbench.guard import BATCH, Guard
from rapbench.guards import Guards
from rapbench.judge import Verdict


class GuardedPipeline:
    """A `text-classification` pipeline and the guard of its model: answers are the pipeline's, with the guard's verdict in each.

    A text of which the pipeline says a watched label and the guard's victim another one is rejected: they read it differently
    (cut at another length, say), so that the guard has not scored what the pipeline has answered.
    """

    def __init__(self, pipeline: Any, guard: Guard | Guards) -> None:
        """Put the two together; a VictimError where they are not of the same model."""
        self.pipeline, self.guard = pipeline, guard
        _check_same(pipeline, guard)
        self._labels: dict[str, int] = pipeline.model.config.label2id

    def __call__(self, texts: str | Iterable[str], **options: Any) -> Any:
        """Answer as the pipeline does: a list for a text or a list of texts, an iterator for an iterator."""
        if isinstance(texts, str):
            return list(self._answers([texts], options))
        answers = self._answers(texts, options)
        return list(answers) if isinstance(texts, Sequence) else answers

    def _answers(self, texts: Iterable[str], options: dict[str, Any]) -> Iterator[Any]:
        waiting = iter(texts)
        while some := list(islice(waiting, BATCH)):
            verdicts = self.guard(some)  # first: it says what is no text
            for answer, verdict in zip(self.pipeline(some, **options), verdicts, strict=True):
                yield self._carrying(answer, verdict)

    def _carrying(self, answer: Any, verdict: Verdict) -> Any:
        """Give the answer, which is a label with its score or a list of them, with the verdict in each."""
        told = verdict.plain()
        answers = answer if isinstance(answer, list) else [answer]
        best = self._labels.get(max(answers, key=lambda one: one["score"])["label"])
        if best in self.guard.labels and best != verdict.prediction:
            told["verdict"] = "reject"
        carried = [{**one, **{name: told[name] for name in ("verdict", "suspicion", "threshold")}} for one in answers]
        return carried if isinstance(answer, list) else carried[0]


def _check_same(pipeline: Any, guard: Guard | Guards) -> None:
    import torch

    if getattr(pipeline, "task", None) != "text-classification":
        raise DataError(f"a guard goes around a text-classification pipeline, this one is for {getattr(pipeline, 'task', None)!r}")
    own, other = guard.judge.victim.model.state_dict(), pipeline.model.state_dict()
    same = own.keys() == other.keys() and all(torch.equal(tensor.cpu(), other[name].cpu()) for name, tensor in own.items())
    if not same or guard.judge.victim.tokenizer.get_vocab() != pipeline.tokenizer.get_vocab():
        raise VictimError(f"the pipeline's model is not this guard's victim: build the pipeline of {guard.about.victim!r}")
