"""The scripts of `cost/` run, and what they print does not hang on the clock: scores and rows are equal, tokens are counted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rapbench import linear

COST = Path(__file__).resolve().parent / "cost"
PROSE = COST.parents[2] / "shared" / "data" / "prose"
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"

pytestmark = pytest.mark.slow


def said(script: str, *arguments: object) -> str:
    """Give what a script prints, which must end well."""
    command = [sys.executable, str(COST / script), *map(str, arguments)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=offline, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def found(pattern: str, text: str) -> list[float]:
    """Give all numbers that stand where the pattern has N."""
    numbers = [
        float(own) for match in re.findall(pattern.replace("N", NUMBER), text) for own in ([match] if isinstance(match, str) else match)
    ]
    assert numbers, text
    return numbers


def test_strip_and_rap_score_as_one_text_at_a_time() -> None:
    told = said("scoring.py", "--words", 30, "--texts", 4, "--rounds", 1)
    assert max(found(r"largest difference of a score from one text at a time: strip N, rap N", told)) < 1e-6
    assert min(found(r"undefended N, (?:strip|rap)", told)) == 32  # [CLS], 30 words and [SEP]


def test_rap_s_row_is_that_of_the_released_loop() -> None:
    told = said("construction.py", "--words", 10, "--texts", 8, "--epochs", 1, "--rounds", 1)
    assert len(found("rows differ by N after", told)) == 2  # dropout off and on
    assert max(found("rows differ by N after", told)) < 1e-5
    assert min(found("after moving by N", told)) > 1e-3


@pytest.mark.skipif(not PROSE.is_dir(), reason="the texts that the small language model reads are not here")
def test_onion_computes_half_of_the_tokens_and_deletes_the_same_words(tmp_path: Path) -> None:
    told = said("onion.py", "--words", 30, "--texts", 3, "--rounds", 1, "--reach", 4, "--train-seconds", 5, "--cache", tmp_path)
    (share,) = found(r"shared prefix: N of", told)
    assert share <= 0.55
    exact = next(line for line in told.splitlines() if line.strip().startswith("shared prefix:"))
    assert found(r"N%", exact) == [100.0] * 4
    assert max(found(r"\(N of the text's perplexity at most\)", exact)) < 1e-5


def test_the_engine_is_measured_beside_torch_s_own_products() -> None:
    told = said("engine.py", "--shape", "minilm-l6", "--budgets", 1024, "--variants", "engine", "--rounds", 1)
    sides = [line.split()[1] for line in told.splitlines() if line.strip().startswith("1024")]
    assert sides == ["torch.matmul", *(["oneDNN's"] if linear.available() else []), "engine"]


def test_one_more_prediction_is_measured_as_one_more() -> None:
    told = said("null.py", "--runs", 1, "--texts", 128)
    assert found("rows N,", told) == [2.0]
    assert found("FLOPs N times", told) == [pytest.approx(2.0, abs=0.01)]
    assert found("time N times", told) == [pytest.approx(2.0, abs=0.3)]  # of few batches, on a machine that may be busy


def test_memory_is_measured_in_fresh_processes() -> None:
    told = said("memory.py", "--sizes", 50, 500, "--sides", "undefended", "rap", "--primitives", 32)
    few_and_many = [found(r"50 texts N MiB, 500 texts N MiB", line) for line in told.splitlines()]
    assert len(few_and_many) == 2
    assert all(many - few < 32 for few, many in few_and_many)


def test_a_guard_is_timed_beside_the_engine_on_the_rows_that_it_takes() -> None:
    told = said("guard.py", "--words", 30, "--texts", 16, "--rounds", 1)
    assert found("30 words, N rows", told) == [32]
    assert min(found("guard: N of the engine's wall", told)) > 0
