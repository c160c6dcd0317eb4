"""What hypothesis makes of the kinds of hostile input: texts, JSON values, rows of data files, spoiled results."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rapbench import results
from rapbench.checks import Bounds, CheckRecord, Distribution, Inequality, Theorem, Verdict
from rapbench.cost import Cost, Spread
from rapbench.lengths import Timed
from rapbench.probe import ProbeRecord

Row = tuple[str, int]
SIGNS = [
    *(
        "\u202eevil\u202c",
        "\u2066a\u2069",
        "\u05d0\u05d1 \u0645\u0631",
        "a\u200bb",
        "\u200d",
        "\ufeff",
        "e\u0301\u0302",
        "\U0001f9d1\u200d\U0001f680",
    ),
    *("\x1b[2J", "\x07", "\x85", "\u2028", "\u2029", "\x0b", "\x1c", "\xa0", "\u3000", "\ufffd", "\uffff", "\U0010ffff", "\x7f"),
    *(
        '"',
        '""',
        "'",
        "\\",
        "|",
        "<script>alert(1)</script>",
        "&amp;",
        "=1+1",
        "@x",
        "-1",
        "$x_1^2$",
        "\\input{/etc/passwd}",
        "%",
        "{}",
        "{0}",
    ),
    *(".", "..", " . ", "null", "NaN", "nan", "None", "", " ", "  ", "[UNK]", "[PAD]", "[CLS]", "##ing", "cf", "mb", "#", "`", "![x](y)"),
]
TEXTS = st.lists(st.sampled_from(SIGNS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8).map(" ".join)
WORDY = TEXTS.filter(lambda text: bool(text.strip()) and "\0" not in text)
"""What the border of data sets lets through."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | TEXTS | st.just("9" * 5000),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(TEXTS, own, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.tuples(TEXTS, st.integers(0, 3)), min_size=1, max_size=4)
NAMES = {"dataset": "demo", "attack": "ep", "victim": "v", "seed": 1}


def samples() -> dict[type[results.Named], dict[str, Any]]:
    """Give one sound file of each kind that a results folder holds."""
    side = Inequality(0.1, 0.5, 0.05, True, 1.0, 0.5, False)
    bounds = Bounds(0.0, 0.9, 0.1, 2.0, 0.5, 0.1, True, True, True, (side,))
    theorem = Theorem("cf", 1.0, (Distribution("p", 3, ((0, 0.1), (100, 0.9))),), (Verdict("all", (1, 2, 3), (bounds,)),))
    times = Spread(2.0, 1.0, 3.0)
    cost = Cost(
        inputs=3,
        fit_s=1.0,
        victim_rows_per_input=2.0,
        victim_tokens_per_input=9.0,
        ms_per_input=times,
        by_length=(Timed(3.0, 2, 0.1, 0.2),),
    )
    record = results.Record(
        **NAMES, defense="strip", frr=0.01, protocol="strict", status="ok", far=0.5, asr=1.0, trigger="mb", metric="accuracy", cost=cost,
        far_at_frr={"0.01": 0.5}, intervals={"far": (0.25, 0.75)}, warnings=("few texts",), verdicts={"test": "gA=="}, n_clean=4,
        attack_notes={"false_trigger_rate": {"": 0.25, "mean": 0.5}},
    )  # fmt: skip
    probe = ProbeRecord(**NAMES, source="random", general="g", count=5, length=4, status="ok", asr=1.0, interval=(0.5, 1.0), n=5)
    check = CheckRecord(**NAMES, word="cf", texts=3, status="ok", theorem=theorem)
    curve = results.Curve(**NAMES, defense="strip", protocol="paper", points=((0.01, 0.02, 0.5),))
    return {type(one): json.loads(json.dumps(dataclasses.asdict(one))) for one in (record, probe, check, curve)}


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[type[results.Named], bytes]:
    """Give a kind of result and its file, of which some values are others, are gone, or which is cut off."""
    kind, content = draw(st.sampled_from(list(samples().items())))
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        _spoil(draw, content)
    text = json.dumps(content)
    if draw(st.booleans()):
        text = text[: draw(st.integers(0, len(text)))] + draw(st.sampled_from(["", "}", "1e999", "NaN", "[" * 5000, "\ud800"]))
    return kind, text.encode("utf-8", "surrogatepass")


def _spoil(draw: st.DrawFn, content: Any) -> None:
    """Put another value somewhere into nested mappings and lists, or take one out."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    if not keys:
        return
    key = draw(st.sampled_from(keys))
    if isinstance(content[key], dict | list) and content[key] and draw(st.booleans()):
        _spoil(draw, content[key])
    elif draw(st.integers(0, 4)):
        content[key] = draw(VALUES)
    else:
        del content[key]


def written(path: Path, rows: Sequence[Row], how: dict[str, Any]) -> None:
    """Write the rows into a data file of the kind that its name says."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts, labels = zip(*rows, strict=True)
        pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "label": labels}), path, compression=how["compression"])
        return
    if kind == "jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=how["ascii"]) for text, label in rows]
        text = how["end"].join(lines) + how["end"]
    else:
        text = _separated(rows, how)
    path.write_bytes(("\ufeff" * how["mark"] + text).encode())


def _separated(rows: Sequence[Row], how: dict[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=how["quoting"], lineterminator=how["end"])
    writer.writerows([("text", "label"), *rows])
    return stream.getvalue()


HOW = st.fixed_dictionaries(
    {
        "mark": st.booleans(),
        "end": st.sampled_from(["\n", "\r\n"]),
        "ascii": st.booleans(),
        "quoting": st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
    }
)
