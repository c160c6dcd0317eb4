"""A model folder that somebody else made, looked at before anything of it is loaded: its files, its settings, its weights' shapes.

What transformers would do with such a folder beyond reading safetensors (shards that are pickles, code by `auto_map`,
weights in another place, a quantised model, tensors as large as config.json likes) is refused here, in one line.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapbench.errors import VictimError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
READ = (".safetensors", ".json", ".txt", ".model")
MAX_JSON = 16 << 20
MAX_FILE = 1 << 30
"""Bytes of a file other than the weights: tokenizers have up to some 30 MB."""
MAX_COUNT = 1000
"""Layers, classes and the like."""
FLOATS = ("BF16", "F16", "F32", "F64")
MAX_TOKENIZER = 128 << 20
MAX_GROWTH = 1000
"""Characters that the rules of a tokenizer may make of one: a chain of "a" -> "aa" is as good as a zip bomb."""
PROBE = ("", "a day, two!", "\u4e00 \U0001f600 e\u0301 xqzj")
FREE_VALUES = 1 << 26
"""Values that a model may have beside those in its file (a new head, tables that are computed), at least."""

CODE = ("auto_map", "custom_pipelines")
ELSEWHERE = ("transformers_weights", "configuration_files", "fast_tokenizer_files", "init_inputs")
QUANTISED = ("quantization_config", "compression_config")
COUNTS = re.compile(r"((?<!window_)layers?|blocks|stages|groups|group_num|experts|num_labels)$")  # Qwen's max_window_layers counts none


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, by its header."""

    dtype: str
    shape: tuple[int, ...]


def check_folder(folder: Path) -> None:
    """Raise a VictimError unless the folder has plain files of sane sizes, settings without code, and safetensors."""
    try:
        for path in sorted(folder.iterdir()):
            _check_file(path)
        if not any(folder.glob("*.safetensors")):
            raise VictimError(
                f"{str(folder)!r} holds no .safetensors file; a pickle (pytorch_model.bin) is never loaded: save the model with safetensors"
            )
        if (folder / "adapter_config.json").exists():
            raise VictimError(f"{str(folder)!r} is an adapter to a model that is elsewhere: merge the two and save them with safetensors")
        config = _settings(folder / "config.json")
        for path in (folder / "tokenizer_config.json", folder / "config.json"):
            if path.exists():
                _check_settings(path)
        if (folder / "tokenizer.json").exists():
            _check_rules(folder / "tokenizer.json")
        _check_counts(config, folder, len(stored(folder)))
    except OSError as error:
        raise VictimError(f"the model folder {str(folder)!r} cannot be read: {error.strerror or error}") from None


def stored(folder: Path) -> dict[str, Stored]:
    """Give the tensors of the folder's weights by the headers of its files, whose sizes they must match; no weight is read."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    for path in _weights(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  # the file is no mapping
                    piece = file.get_slice(name)
                    tensors[name] = Stored(str(piece.get_dtype()), tuple(piece.get_shape()))
        except SafetensorError as error:
            raise VictimError(f"{str(path)!r} is no whole safetensors file: {_line(error)}") from None
    return tensors


def check_shapes(folder: Path, config: PreTrainedConfig, factory: Any, *, new_head: bool) -> None:
    """Raise a VictimError unless the weights have the shapes that the settings ask for, before memory is taken for them.

    `factory`: an Auto class of transformers. With `new_head`, what is not of the encoder may have another shape.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes alone: no memory, and no number is drawn
        model = factory.from_config(config, trust_remote_code=False)
    tensors = stored(folder)
    missing, there = 0, False
    for name, wanted in (*model.named_parameters(), *model.named_buffers()):
        found = stored_as(name, tensors, model)
        there = there or found is not None
        if found is None or (new_head and found.shape != tuple(wanted.shape) and _of_head(name, model)):
            missing += wanted.numel()
        elif wanted.is_floating_point() and found.dtype not in FLOATS:
            raise VictimError(f"the weight {name!r} in {str(folder)!r} is of the type {found.dtype}: give floats, {', '.join(FLOATS)}")
        elif found.shape != tuple(wanted.shape):
            raise VictimError(
                f"the weight {name!r} in {str(folder)!r} has the shape {found.shape}, but config.json asks for {tuple(wanted.shape)}"
            )
    if not there:
        raise VictimError(f"{str(folder)!r} holds no weight of a {type(model).__name__}, which config.json says it is")
    held = sum(_numel(one.shape) for one in tensors.values())
    if missing > max(held, FREE_VALUES):
        raise VictimError(f"config.json in {str(folder)!r} asks for {missing:,} values that the weights do not have; they hold {held:,}")


def check_tokenizer(folder: Path, tokenizer: Any, rows: int) -> None:
    """Raise a VictimError where a tokenizer was made up since its files are missing, fails, or has ids without an embedding row."""
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if files and not any((folder / name).is_file() for name in files):
        raise VictimError(f"{str(folder)!r} holds no tokenizer: save it beside the model ({' or '.join(files)})")
    try:
        with unpanicked():
            read = tokenizer(list(PROBE), verbose=False)["input_ids"]  # what is put around each text need not be in the vocabulary
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise VictimError(f"the tokenizer in {str(folder)!r} cannot read {PROBE!r}: {_line(error)}") from None
    highest = max((*tokenizer.get_vocab().values(), *(token for ids in read for token in ids)), default=-1)
    if highest >= rows:
        raise VictimError(f"the tokenizer in {str(folder)!r} has the id {highest}, but the model has embeddings for 0..{rows - 1}")


@contextmanager
def unpanicked() -> Iterator[None]:
    """Turn a panic of `tokenizers`, which is written in Rust and then raises what is no Exception, into a VictimError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 has no module to import it from
            raise
        raise VictimError(f"the tokenizer breaks down: {_line(error)}") from None


def _check_file(path: Path) -> None:
    """Refuse pipes and devices, of which reading has no end, links to nothing, and sizes that no such file has."""
    if not path.is_file():
        if path.is_dir() and path.suffix not in READ:
            return
        raise VictimError(f"{str(path)!r} is no plain file: take it out of the model folder")
    if path.suffix in READ and path.suffix != ".safetensors" and path.stat().st_size > MAX_FILE:
        raise VictimError(f"{str(path)!r} is larger than {MAX_FILE >> 30} GiB: no tokenizer or setting is")


def _settings(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    if not path.is_file():
        raise VictimError(f"{str(path.parent)!r} has no {path.name}: save the model with save_pretrained")
    if path.stat().st_size > most:
        raise VictimError(f"{str(path)!r} is larger than {most >> 20} MiB")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VictimError(f"{str(path)!r} is no JSON: {_line(error)}") from None
    if not isinstance(content, dict):
        raise VictimError(f"{str(path)!r} is no JSON object")
    return content


def _check_settings(path: Path) -> None:
    for key, value in _pairs(_settings(path)):
        if key in CODE and value:
            raise VictimError(f"{str(path)!r} wants code of its own to run ({key}), which never happens: save the model without it")
        if key.endswith("_implementation") and "/" in str(value):
            raise VictimError(f"{str(path)!r} wants code from the hub to run ({key}={str(value)[:80]!r}), which never happens: take it out")
        if (key in ELSEWHERE and value) or (key.endswith("_file") and _is_elsewhere(value)):
            raise VictimError(f"{str(path)!r} names other files to read ({key}): save the model as {WEIGHTS} and config.json")
        if key in QUANTISED and value:
            raise VictimError(f"{str(path)!r} is of a quantised model ({key}): give one whose weights are floats")


def _check_rules(path: Path) -> None:
    """Refuse rules of a tokenizer.json that take memory without bound, where it is loaded or where a text is read."""
    content, growth = _settings(path, MAX_TOKENIZER), 1
    for part in ("normalizer", "pre_tokenizer"):
        for key, value in _pairs(content.get(part)):
            if key == "precompiled_charsmap" and not _is_charsmap(value):
                raise VictimError(f"{str(path)!r} has a precompiled_charsmap whose size is not the one that it says")
            if key in ("content", "prepend") and isinstance(value, str):
                growth *= max(1, len(value))
    if growth > MAX_GROWTH:
        raise VictimError(f"{str(path)!r} makes up to {growth:,} characters of one (Replace, Prepend): at most {MAX_GROWTH:,} make sense")


def _is_charsmap(value: object) -> bool:
    """Tell whether the size of its table, the first four bytes, is in it: as much memory is taken before anybody looks."""
    try:
        raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        return False
    return len(raw) >= 4 and int.from_bytes(raw[:4], "little") <= len(raw) - 4


def _is_elsewhere(value: object) -> bool:
    """Tell whether this is the path of something that is there; many tokenizers name files of their maker's machine, which are not."""
    return isinstance(value, str) and Path(value).name != value and os.path.lexists(os.path.expanduser(value))


def _check_counts(config: Mapping[str, Any], folder: Path, tensors: int) -> None:
    """Refuse numbers of parts that only take time and memory: each layer has a tensor at least."""
    for key, value in _pairs(config):
        most = min(MAX_COUNT, tensors) if "layer" in key else MAX_COUNT
        if COUNTS.search(key) and isinstance(value, int | float) and value > most:
            raise VictimError(f"config.json in {str(folder)!r} says {key}={value!r}: with {tensors} tensors there are at most {most}")


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Give the keys of nested mappings with their values; no recursion, whatever the depth."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _weights(folder: Path) -> list[Path]:
    """Give the files that transformers takes the weights from: the one file, or the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise VictimError(f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}")
    shards = _settings(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise VictimError(f"{str(folder / INDEX)!r} has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise VictimError(f"{str(folder / INDEX)!r} names {str(name)[:80]!r}: only .safetensors files of the same folder are loaded")
        if not (folder / name).is_file():
            raise VictimError(f"{str(folder / INDEX)!r} names {name[:80]!r}, which is not there")
    return [folder / name for name in sorted(set(shards.values()))]


def stored_as(name: str, tensors: Mapping[str, Stored], model: PreTrainedModel) -> Stored | None:
    """Give the tensor of a parameter: by its name, with or without the encoder's prefix, or by the name that BERT once had for it."""
    prefix = f"{model.base_model_prefix}."
    for own in (name, name.removeprefix(prefix), prefix + name):
        for spelled in (own, own.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")):
            if spelled in tensors:
                return tensors[spelled]
    return None


def _of_head(name: str, model: PreTrainedModel) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
