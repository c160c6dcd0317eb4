"""A model that somebody received: where it is, what its files are, and the victim, loaded once for all that guard it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rapbench.checkpoint import stored, stored_as
from rapbench.copied import copied
from rapbench.errors import VictimError
from rapbench.victim import Victim, model_fingerprint


@dataclass(frozen=True)
class Received:
    """A victim's folder, the digest of its files, and the victim."""

    folder: Path
    digest: str
    victim: Victim

    @classmethod
    def at(cls, place: str | Path, max_length: int, device: str, *, digest: str | None = None) -> Self:
        """Look at a folder and load its classifier. `digest`: what its files must have; a VictimError where they have not."""
        folder = Path(place).expanduser()
        if not folder.is_dir():
            raise VictimError(f"there is no model folder {str(place)!r}: give the folder of the victim, with its weights in safetensors")
        folder = folder.resolve()
        found = model_fingerprint(str(folder), None)
        if digest not in (None, found):
            raise VictimError(
                f"the guard belongs to the victim with the digest {digest}, and {str(folder)!r} has {found}: "
                "it is another one or was changed; give the right one, or fit a guard on this one"
            )
        return cls(folder, found, _loaded(folder, max_length, device))

    def protecting(self, label: int) -> Victim:
        """Give the victim with this protect label: its weights, and the predictions that it remembers, are the same ones."""
        return replace(self.victim, target_label=label)


def _loaded(folder: Path, max_length: int, device: str) -> Victim:
    """Load the victim; a copy of it, since kernels may round otherwise where weights lie at another alignment in memory."""
    loaded = Victim.load(folder, target_label=0, max_length=max_length)
    tensors = stored(folder)
    if missing := [name for name, _ in loaded.model.named_parameters() if stored_as(name, tensors, loaded.model) is None]:
        raise VictimError(f"the model in {str(folder)!r} is no trained classifier: its file has no {missing[0]!r}, which would be made up")
    twin = copied(loaded, loaded.model)
    twin.model, twin.device = twin.model.to(device), device
    return twin
