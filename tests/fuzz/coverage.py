"""One border under atheris, which looks for bytes that reach new code: python tests/fuzz/coverage.py grid -max_total_time=60

`pip install atheris` (Linux, no part of the test suite). It ends at the first finding, whose bytes it leaves in `crash-...`; the same
bytes again: python tests/fuzz/coverage.py grid crash-...
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"
SLOWEST_S = 20
HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"a":"b"}}'
GRID = b"datasets: [demo]\nattacks: [ep, {name: badnet-rw, word: mb}]\ndefenses: [strip]\nfrr: [0.01]\nblocks: [{seeds: [1]}]\n"
RULES = b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}, "pre_tokenizer": {"content": "a"}}'
MANIFEST = {"key": "0" * 32, "attempt": "a", "files": {"b": {"bytes": 1, "blake2b": "c"}}, "provenance": {}}


def main() -> None:
    import atheris

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with atheris.instrument_imports(include=["rapbench", "rapbench_plugins", "yaml", "fuzz"]):
        from fuzz.borders import BORDERS, untouched

    border = BORDERS[sys.argv.pop(1)]
    with TemporaryDirectory() as root, TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()[border.__name__]):
            Path(corpus, str(number)).write_bytes(seed)
        (Path(root) / "canary").write_text("untouched")
        work = Path(root, "work")

        def once(data: bytes) -> None:
            rmtree(work, ignore_errors=True)
            work.mkdir()
            with untouched(Path(root), work):
                border(data, work)

        given = any(not argument.startswith("-") for argument in sys.argv[1:])
        atheris.Setup([*sys.argv, f"-timeout={SLOWEST_S}", *([] if given else [corpus])], once)
        atheris.Fuzz()


def seeds() -> dict[str, list[bytes]]:
    """Give sound bytes for each border, to start from."""
    from fuzz.made import samples

    results = [bytes([number]) + json.dumps(one).encode() for number, one in enumerate(samples().values())]
    return {
        "spec": [
            b"\1badnet-rw:word=mb,poison_rate=0.5",
            b'\1badnet-sl:sentence="a, b"',
            b"\2strip:copies=20",
            b"\2onion:lm=trigram,levels=50/99",
        ],
        "grid": [GRID],
        "rows": [
            b'\0text,label\n"a, b",1\nb,0\n',
            b"\1text\tlabel\na\t1\n",
            b'\2{"text": "a", "label": 1}\n',
            b"\3" + _parquet(),
            b"\7text,label\nc,0\n",
        ],
        "header": [struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)],
        "settings": [
            b'\0{"model_type": "bert", "num_hidden_layers": 2}',
            b'\1{"auto_map": {}}',
            b'\2{"weight_map": {"a": "a.safetensors"}}',
            b"\3" + RULES,
        ],
        "result": results,
        "manifest": [json.dumps(MANIFEST).encode()],
        "corpus": [b"\0One. Two.\n", b"\1text,label\na,1\n", b'\3{"text": "a. b"}\n', b"\4" + _parquet()],
    }


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a. b", "c"], "label": [1, 0]}), stream, store_schema=False)
    return stream.getvalue()


if __name__ == "__main__":
    main()
