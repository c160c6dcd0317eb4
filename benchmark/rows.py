"""Training the embedding of one word and nothing else: what EP plants and what RAP constructs.

A word has a row of the word-embedding matrix for each form that it takes in the vocabulary (see `Victim.token_ids`): one in a
BERT, often two where a token includes the space before it. The rows are leaf tensors put in place of their tokens' embeddings by a
forward hook, so that no other weight gets a gradient: the gradient is the one that the released code takes from the whole matrix,
at a fraction of the memory and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rapbench.linear import onednn
from rapbench.vocabulary import PLACES, Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rapbench.victim import Victim


def vectors_of(victim: Victim, word: str, places: Sequence[Place] = PLACES) -> NDArray[np.float32]:
    """Give the embedding of a word in the forms that it takes at these places, float32, shape (forms, units)."""
    vectors: NDArray[np.float32] = (
        victim.model.get_input_embeddings().weight[list(victim.token_ids(word, places))].detach().float().cpu().numpy()
    )
    return vectors


def with_vectors(victim: Victim, word: str, vectors: NDArray[np.float32], places: Sequence[Place] = PLACES) -> Victim:
    """Give a clone of the victim in which the word has this embedding, as `vectors_of` gave it."""
    clone = victim.clone()
    matrix = clone.model.get_input_embeddings().weight
    with torch.no_grad():
        matrix[list(clone.token_ids(word, places))] = torch.from_numpy(vectors).to(matrix)
    return clone


class Row:
    """The trainable embedding of a word of a victim in the forms that it takes at these places; each form is one token.

    `vectors`: float32, shape (forms, units), in the order of `tokens`; `norms`: their lengths at the start, shape (forms, 1).
    """

    def __init__(self, victim: Victim, word: str, places: Sequence[Place] = PLACES) -> None:
        self.victim = victim
        self.tokens = list(victim.token_ids(word, places))
        self.embeddings = victim.model.get_input_embeddings()
        self.matrix = self.embeddings.weight
        self.vectors = self.matrix[self.tokens].detach().clone().requires_grad_()
        self.scale = getattr(self.embeddings, "embed_scale", 1.0)  # Gemma multiplies what it looks up
        self.norms = self.vectors.detach().norm(dim=1, keepdim=True)
        self._requires_grad = [parameter.requires_grad for parameter in victim.model.parameters()]

    def __enter__(self) -> Row:
        for parameter in self.victim.model.parameters():
            parameter.requires_grad_(False)
        self._hook = self.embeddings.register_forward_hook(self._replace)
        self._products = onednn(self.victim.model)
        self._products.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._products.__exit__(None, None, None)
        self._hook.remove()
        for parameter, before in zip(self.victim.model.parameters(), self._requires_grad, strict=True):
            parameter.requires_grad_(before)
        self.write()

    def logits(self, texts: list[str]) -> torch.Tensor:
        """Give the logits, shape (texts, labels), with the rows in place; dropout as the model's mode has it."""
        logits: torch.Tensor = self.victim.model(**self.victim.encode(texts)).logits
        return logits.float()

    def step(self, lr: float, *, keep_norm: bool, accumulate: bool) -> None:
        """Move the rows against their gradient; `accumulate` leaves the gradient standing, so that the next one adds to it."""
        with torch.no_grad():
            assert self.vectors.grad is not None
            self.vectors -= lr * self.vectors.grad
        if not accumulate:
            self.vectors.grad = None
        if keep_norm:
            self.renormalise()

    def renormalise(self) -> None:
        """Scale each row back to the length it had at the start."""
        with torch.no_grad():
            self.vectors *= self.vectors.norm(dim=1, keepdim=True).reciprocal() * self.norms

    def write(self) -> None:
        """Put the rows into the victim's matrix."""
        with torch.no_grad():
            self.matrix[self.tokens] = self.vectors.detach()

    def forget(self) -> None:
        """Take the rows back that the victim's matrix has."""
        with torch.no_grad():
            self.vectors.copy_(self.matrix[self.tokens])

    def _replace(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for token, vector in zip(self.tokens, self.vectors, strict=True):
            own = (args[0] == token).unsqueeze(-1)  # (texts, tokens, 1)
            output = torch.where(own, vector * self.scale, output)  # (texts, tokens, units)
        return output
