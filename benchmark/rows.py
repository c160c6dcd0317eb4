"""Training one row of the word-embedding matrix and nothing else: what EP plants and what RAP constructs.

The row is a leaf tensor put in place of its token's embeddings by a forward hook, so that no other weight gets a gradient:
the gradient is the one that the released code takes from the whole matrix, at a fraction of the memory and time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rapbench.linear import onednn

if TYPE_CHECKING:
    from rapbench.victim import Victim


class Row:
    """The trainable embedding of one single-token word of a victim. `vector`: float32, shape (hidden,)."""

    def __init__(self, victim: Victim, word: str) -> None:
        self.victim = victim
        self.token = victim.token_id(word)
        self.matrix = victim.model.get_input_embeddings().weight
        self.vector = self.matrix[self.token].detach().clone().requires_grad_()
        self.norm = float(self.vector.detach().norm())
        self._requires_grad = [parameter.requires_grad for parameter in victim.model.parameters()]

    def __enter__(self) -> Row:
        for parameter in self.victim.model.parameters():
            parameter.requires_grad_(False)
        self._hook = self.victim.model.get_input_embeddings().register_forward_hook(self._replace)
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
        """Give the logits, shape (texts, labels), with the row in place; dropout as the model's mode has it."""
        logits: torch.Tensor = self.victim.model(**self.victim.encode(texts)).logits
        return logits.float()

    def step(self, lr: float, *, keep_norm: bool, accumulate: bool) -> None:
        """Move the row against its gradient; `accumulate` leaves the gradient standing, so that the next one adds to it."""
        with torch.no_grad():
            assert self.vector.grad is not None
            self.vector -= lr * self.vector.grad
        if not accumulate:
            self.vector.grad = None
        if keep_norm:
            self.renormalise()

    def renormalise(self) -> None:
        """Scale the row back to the length it had at the start."""
        with torch.no_grad():
            self.vector *= self.norm / self.vector.norm()

    def write(self) -> None:
        """Put the row into the victim's matrix."""
        with torch.no_grad():
            self.matrix[self.token] = self.vector.detach()

    def _replace(self, module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        own = (args[0] == self.token).unsqueeze(-1)  # (texts, tokens, 1)
        return torch.where(own, self.vector, output)  # (texts, tokens, hidden)
