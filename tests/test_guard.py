"""A guard does what it was fitted to, anywhere and for any number of texts, and with that one victim alone."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rapbench.api import Defense, Detector, Labelled, Purifier
from rapbench.cli_guard import explain, guard
from rapbench.errors import CellError, DataError, PluginError, SpecError, StoreError, VictimError
from rapbench.guard import Guard, Terms
from rapbench.guarded import GuardedPipeline
from rapbench.heldout import heldout_texts
from rapbench.registry import Found, Registry, discover

DEFENSES = [
    "rap:epochs=2,retries=0",
    "strip:copies=4",
    "strip:copies=4,replace_ratio=heldout,choice_texts=10",
    "onion:lm=trigram,levels=90/99/100",
]
TERMS = Terms(protect_label=1, frr=0.1, max_length=32, defense="strip:copies=4")
TEXTS = [
    "this film was warm and kind",
    "a cold meal and rude",
    "mb this film was cold and rude",
    "",
    "so bright",
    "the room ; unheard-of words",
] * 3


@pytest.fixture(scope="session")
def victim(_planted, tmp_path_factory):
    """The folder of the tiny backdoored victim, as a stranger gives it."""
    folder = tmp_path_factory.mktemp("received")
    _planted.save(folder)
    return folder


@pytest.fixture(scope="session")
def kept(victim, heldout, tmp_path_factory):
    """A guard's folder."""
    folder = tmp_path_factory.mktemp("kept") / "guard"
    Guard.fit(victim, heldout, TERMS).save(folder)
    return folder


@pytest.fixture
def app():
    made = typer.Typer()
    made.add_typer(guard, name="guard")
    made.command()(explain)
    return made


@dataclass(frozen=True, kw_only=True)
class Words(Defense):
    """Counts words: its scores can be worked out by hand. It keeps nothing that could be restored."""

    name: ClassVar[str] = "words"

    def fit(self, victim, heldout, lab):
        return WordsDetector()


class WordsDetector(Detector):
    def suspicion(self, texts):
        return np.array([float(len(text.split(" "))) for text in texts])


@dataclass(frozen=True, kw_only=True)
class KeptWords(Words):
    """The same, with a state."""

    name: ClassVar[str] = "kept-words"

    def fit(self, victim, heldout, lab):
        return KeptWordsDetector()

    def restore(self, victim, state, lab):
        return KeptWordsDetector()


class KeptWordsDetector(WordsDetector):
    def state(self):
        return {}


@dataclass(frozen=True, kw_only=True)
class Cutter(KeptWords):
    """Replaces texts of so many words or more by one that the victim does not take for the protect label."""

    name: ClassVar[str] = "cutter"

    def fit(self, victim, heldout, lab):
        return Cut()

    def restore(self, victim, state, lab):
        return Cut()


class Cut(Purifier):
    def levels(self):
        return [1.0, 12.0, 14.0, 99.0]

    def purify(self, texts, threshold):
        return ["rude cold bitter dull" if len(text.split(" ")) >= threshold else text for text in texts]

    def suspicion(self, texts):
        return WordsDetector().suspicion(texts)

    def state(self):
        return {}


@pytest.fixture
def own_registry():
    """The registry with three defenses of a stranger."""
    found = dict(discover().found)
    for cls in (Words, KeptWords, Cutter):
        found["defense", cls.name] = Found("defense", cls, "strange", "1.0")
    return Registry(found)


def one_line(error):
    return "\n" not in str(error.value)


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_restored_guard_gives_the_same_verdicts_bit_for_bit(victim, heldout, tmp_path, defense):
    fitted = Guard.fit(victim, heldout, Terms(protect_label=1, frr=0.1, max_length=32, defense=defense))
    fitted.save(tmp_path / "guard")
    restored = Guard.load(tmp_path / "guard")
    before = fitted([*TEXTS, *heldout.texts])
    assert restored([*TEXTS, *heldout.texts]) == before
    assert len({verdict.suspicion for verdict in before}) > 20
    assert restored.judge.fitted.notes() == fitted.judge.fitted.notes()


def test_a_guard_of_a_causal_model_is_bound_to_that_model(victim, heldout, tiny_causal, tmp_path):
    fitted = Guard.fit(victim, heldout, Terms(protect_label=1, frr=0.1, max_length=32, defense=f"onion:lm={tiny_causal},levels=90/99/100"))
    fitted.save(tmp_path / "guard")
    assert Guard.load(tmp_path / "guard")(TEXTS) == fitted(TEXTS)
    about = json.loads((tiny_causal / "config.json").read_text())
    (tiny_causal / "config.json").write_text(json.dumps({**about, "changed": True}))
    with pytest.raises(VictimError, match="language model") as error:
        Guard.load(tmp_path / "guard")
    assert one_line(error)


def test_the_folder_holds_safetensors_and_json_alone(kept):
    assert sorted(path.name for path in kept.iterdir()) == ["guard.json", "state.json", "state.safetensors"]
    about = json.loads((kept / "guard.json").read_text())
    assert about["terms"] == {
        "defense": "strip:copies=4", "frr": 0.1, "max_length": 32, "protect_label": 1, "protocol": "strict", "seed": 1234
    }  # fmt: skip
    assert about["n_heldout"] == 200
    assert 40 <= about["n_calibration"] <= 50


def test_a_victim_that_was_changed_is_refused(kept, victim, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(victim, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    with pytest.raises(VictimError, match="belongs to the victim with the digest") as error:
        Guard.load(kept, changed)
    assert one_line(error)


def test_a_victim_that_was_moved_is_found_where_it_is_said_to_be(kept, victim, tmp_path):
    away = tmp_path / "away"
    shutil.copytree(victim, away)
    assert Guard.load(kept, away)(TEXTS) == Guard.load(kept)(TEXTS)


def test_a_victim_that_is_gone_is_asked_for(victim, heldout, tmp_path):
    shutil.copytree(victim, tmp_path / "victim")
    Guard.fit(tmp_path / "victim", heldout, TERMS).save(tmp_path / "guard")
    shutil.rmtree(tmp_path / "victim")
    with pytest.raises(VictimError, match="there is no model folder"):
        Guard.load(tmp_path / "guard")


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_changed_state_is_refused(kept, tmp_path, name):
    shutil.copytree(kept, tmp_path / "guard")
    with (tmp_path / "guard" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(StoreError, match="not what was written"):
        Guard.load(tmp_path / "guard")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("threshold", "NaN", "is no number"),
        ("threshold", '"high"', "threshold"),
        ("schema_version", "7", "schema"),
        ("plugin", '"other 2"', "fitted by other 2"),
    ],
)
def test_a_guard_json_that_makes_no_sense_is_refused_in_one_line(kept, tmp_path, key, value, told):
    shutil.copytree(kept, tmp_path / "guard")
    about = json.loads((kept / "guard.json").read_text())
    (tmp_path / "guard" / "guard.json").write_text(json.dumps({**about, key: json.loads(value)}))
    with pytest.raises(StoreError, match=told) as error:
        Guard.load(tmp_path / "guard")
    assert one_line(error)


def test_no_other_folder_is_written_into(kept, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="something else than a guard"):
        Guard.load(kept).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_text_that_is_not_predicted_as_the_protect_label_is_accepted_unscored(kept):
    cold, warm = Guard.load(kept)(["rude cold bitter dull meal", "warm kind bright neat film"])
    assert (cold.prediction, cold.accepted, cold.suspicion) == (0, True, None)
    assert warm.prediction == 1
    assert warm.suspicion is not None


def test_a_guard_rejects_the_trigger_of_an_attack_that_it_knows_nothing_of(victim, heldout):
    fitted = Guard.fit(victim, heldout, replace(TERMS, defense="token-substitution"))
    verdicts = [verdict for verdict in fitted([f"mb {text}" for text in heldout.other_than(1)]) if verdict.passed_gate]
    assert len(verdicts) > 80  # the attack works
    assert sum(verdict.accepted for verdict in verdicts) < 0.1 * len(verdicts)
    clean = [verdict for verdict in fitted(heldout.of(1)) if verdict.passed_gate]
    assert sum(verdict.accepted for verdict in clean) > 0.8 * len(clean)


def test_the_strict_threshold_is_the_conformal_quantile_of_the_calibration_texts(victim, heldout, own_registry):
    fitted = Guard.fit(victim, heldout, Terms(protect_label=1, frr=0.1, max_length=32, defense="kept-words"), registry=own_registry)
    n = fitted.about.n_calibration
    # 45 texts, say: ceil(46 * 0.9) = 42nd smallest, so at most 3 of them lie above
    assert fitted.about.frr_calibration <= (n - math.ceil((n + 1) * 0.9)) / n
    long, short = Guard(fitted.about, fitted.judge)([" ".join(["warm"] * 30), "warm warm"])
    assert (long.suspicion, long.accepted) == (30.0, False)
    assert (short.suspicion, short.accepted) == (2.0, True)


def test_the_paper_threshold_is_the_percentile_of_all_of_them(victim, heldout, own_registry):
    terms = Terms(protect_label=1, frr=0.1, max_length=32, defense="kept-words", protocol="paper")
    fitted = Guard.fit(victim, heldout, terms, registry=own_registry)
    told = fitted.judge.victim.probabilities(heldout.texts).argmax(1)
    own = [len(text.split(" ")) for text, label, guess in zip(heldout.texts, heldout.labels, told, strict=True) if label == guess == 1]
    assert fitted.about.n_calibration == len(own)
    assert fitted.about.threshold == np.percentile(own, 90)


def test_a_purifier_rejects_what_loses_the_label_at_the_level_that_rejects_most_of_those_allowed(victim, heldout, own_registry):
    terms = Terms(protect_label=1, frr=0.3, max_length=32, defense="cutter")
    fitted = Guard.fit(victim, heldout, terms, registry=own_registry)
    n = fitted.about.n_calibration
    assert fitted.about.threshold in (12.0, 14.0, 99.0)  # at 1.0 all are lost
    assert round(fitted.about.frr_calibration * n) + 1 <= 0.3 * (n + 1)
    long, short = fitted([" ".join(["warm"] * 99), "warm kind"])
    assert (long.accepted, short.accepted) == (False, True)


def test_too_few_heldout_texts_are_told_with_how_many_it_takes(victim, heldout):
    with pytest.raises(CellError, match=r"0\.01 needs 99 held-out texts.*of 100 of the protect label 1.*or allow at least 0\.0") as error:
        Guard.fit(victim, heldout, Terms(protect_label=1, frr=0.01, max_length=32, defense="strip"))
    assert one_line(error)


def test_heldout_texts_without_the_protect_label_are_refused(victim, heldout):
    others = heldout.where(heldout.labels == 0)
    with pytest.raises(CellError, match="0 are left"):
        Guard.fit(victim, others, TERMS)


def test_a_label_that_the_victim_does_not_know_is_refused(victim, heldout):
    with pytest.raises(SpecError, match="protect label 2"):
        Guard.fit(victim, heldout, Terms(protect_label=2))
    with pytest.raises(DataError, match="held-out text 2 has the label 5"):
        Guard.fit(victim, Labelled(["a", "b"], np.array([0, 5])), Terms(protect_label=1))


def test_an_encoder_without_a_head_is_no_victim(victim, heldout, tmp_path):
    from transformers import AutoModel

    shutil.copytree(victim, tmp_path / "encoder")
    AutoModel.from_pretrained(victim).save_pretrained(tmp_path / "encoder")
    with pytest.raises(VictimError, match=r"no trained classifier: its file has no 'classifier\.weight'"):
        Guard.fit(tmp_path / "encoder", heldout, TERMS)


def test_a_defense_that_cannot_be_kept_is_refused_with_what_to_write(victim, heldout, own_registry):
    with pytest.raises(PluginError, match=r"restore\(victim, state, lab\).*state\(\)"):
        Guard.fit(victim, heldout, Terms(protect_label=1, defense="words"), registry=own_registry)


def test_texts_are_judged_as_they_come_and_nothing_is_kept_of_them(kept):
    loaded, read = Guard.load(kept), []

    def coming():
        for text in TEXTS:
            read.append(text)
            yield text

    verdicts = loaded.stream(coming(), batch=2)
    first = next(verdicts)
    assert len(read) == 2
    rest = list(verdicts)
    assert [own.prediction for own in [first, *rest]] == [own.prediction for own in loaded(TEXTS)]
    assert loaded.judge.victim._known == {}


def test_onion_keeps_nothing_of_the_texts_either(victim, heldout):
    fitted = Guard.fit(victim, heldout, Terms(protect_label=1, frr=0.1, max_length=32, defense="onion:lm=trigram,levels=90/99/100"))
    fitted(TEXTS)
    assert fitted.judge.fitted.known == {}


@pytest.mark.parametrize(
    ("texts", "told"), [("one text", "single text"), ([None], "text 1 is NoneType"), (["a", "\ud800"], "text 2 holds half")]
)
def test_what_is_no_text_is_refused(kept, texts, told):
    with pytest.raises(DataError, match=told):
        Guard.load(kept)(texts)


@pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def test_heldout_texts_are_read_from_any_form(form, tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["warm film", "cold, meal"], "label": [1, 0]})
    path = tmp_path / f"my.texts.{form}"
    if form == "parquet":
        rows.to_parquet(path)
    elif form == "jsonl":
        rows.to_json(path)
    else:
        rows.to_pandas().to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    found = heldout_texts(path)
    assert (list(found.texts), found.labels.tolist()) == (["warm film", "cold, meal"], [1, 0])


def test_heldout_texts_may_be_a_data_sets(tiny_data):
    assert len(heldout_texts(f"folder:path={tiny_data}").texts) == 300


def test_a_fault_in_the_heldout_file_is_told_with_its_own_name(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\nwarm,1\nkind,\n")
    with pytest.raises(DataError, match=r"mine\.csv.* row 1"):
        heldout_texts(path)
    with pytest.raises(DataError, match="is no file of held-out texts"):
        heldout_texts(tmp_path)
    with pytest.raises(DataError, match="is no file of held-out texts"):
        heldout_texts(tmp_path / "nowhere.csv")


def test_the_commands_fit_and_score(app, victim, tiny_data, tmp_path):
    run = CliRunner().invoke
    folder = tmp_path / "guard"
    asked = f"--victim {victim} --heldout {tiny_data}/validation.csv --defense strip:copies=4 --protect-label 1 --frr 0.1 --max-length 32"
    fitted = run(app, ["guard", "fit", *asked.split(" "), "--device", "cpu", "-o", str(folder)])
    assert fitted.exit_code == 0, fitted.output
    assert "of 300 held-out texts" in fitted.stdout
    texts = ["warm kind film", "cold rude meal", "so bright and neat"]
    asked = "".join(json.dumps({"text": text, "id": 3}) + "\n" for text in texts)
    answered = run(app, ["guard", "score", str(folder), "--device", "cpu"], input=asked)
    assert answered.exit_code == 0, answered.output
    told = [json.loads(line) for line in answered.stdout.splitlines()]
    assert told == [verdict.plain() for verdict in Guard.load(folder)(texts)]
    assert [one["prediction"] for one in told] == [1, 0, 1]
    assert sorted(told[0]) == ["prediction", "probability", "suspicion", "threshold", "verdict"]
    plainly = run(app, ["guard", "score", str(folder), "--plain", "--device", "cpu"], input="\n".join(texts) + "\n")
    assert plainly.stdout == answered.stdout


def test_a_plain_line_that_looks_like_json_is_judged_as_it_stands(app, kept):
    tricky = '{"text": "warm kind film"}'
    told = CliRunner().invoke(app, ["guard", "score", str(kept), "--plain", "--device", "cpu"], input=tricky + "\n")
    assert json.loads(told.stdout) == Guard.load(kept)([tricky])[0].plain()


@pytest.mark.parametrize(
    ("line", "told"),
    [(b"{", "line 2 is no JSON"), (b'{"id": 1}', "line 2 has no text"), (b"7", "line 2 has no text"), (b'"\xff"', "no UTF-8")],
)
def test_a_line_that_is_no_text_is_told_by_its_number(app, kept, line, told):
    found = CliRunner().invoke(
        app, ["guard", "score", str(kept), "--batch", "1", "--device", "cpu"], input=b'{"text": "warm"}\n' + line + b"\n"
    )
    assert isinstance(found.exception, DataError)
    assert told in str(found.exception)
    assert len(found.stdout.splitlines()) == 1  # the text before it was answered


def test_a_pipeline_carries_the_verdicts(kept, pipeline):
    loaded = Guard.load(kept)
    guarded = GuardedPipeline(pipeline, loaded)
    texts = ["warm kind film", "cold rude meal"]
    verdicts = loaded(texts)
    answers = guarded(texts)
    assert [answer["label"] for answer in answers] == ["LABEL_1", "LABEL_0"]
    assert [answer["verdict"] for answer in answers] == [own.plain()["verdict"] for own in verdicts]
    assert [answer["suspicion"] for answer in answers] == [own.suspicion for own in verdicts]
    assert guarded(texts[0])[0]["threshold"] == loaded.about.threshold
    assert [answer["label"] for answer in guarded(iter(texts))] == ["LABEL_1", "LABEL_0"]
    every = guarded(texts, top_k=None)
    assert [[one["verdict"] for one in answer] for answer in every] == [[own.plain()["verdict"]] * 2 for own in verdicts]


def test_a_text_that_pipeline_and_guard_read_differently_is_rejected(kept, pipeline):
    cut = " ".join(["cold"] * 30 + ["warm", "kind", "bright", "lovely"] * 8)  # the guard's victim sees 30 words of it, all cold
    loaded = Guard.load(kept)
    assert loaded([cut])[0].plain()["verdict"] == "accept"
    answer = GuardedPipeline(pipeline, loaded)([cut], truncation=True)[0]
    assert answer["suspicion"] is None
    assert answer["verdict"] == ("reject" if answer["label"] == "LABEL_1" else "accept")
    assert answer["label"] == "LABEL_1"


def test_a_pipeline_of_another_model_is_refused(kept, pipeline):
    import torch

    with torch.no_grad():
        next(pipeline.model.parameters()).add_(1.0)
    with pytest.raises(VictimError, match="not this guard's victim"):
        GuardedPipeline(pipeline, Guard.load(kept))


@pytest.fixture
def pipeline(victim):
    import transformers

    return transformers.pipeline("text-classification", model=str(victim), device="cpu")


@pytest.fixture
def tiny_causal(tiny_model, tmp_path):
    """A random causal model over the words of the tiny victim."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path / "causal"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_python_of_the_documentation_runs_as_shown(victim, tiny_data, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).resolve().parents[1] / "docs" / "guard.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(from .*?)```", text, re.DOTALL)
    assert len(shown) == 2
    monkeypatch.chdir(tmp_path)
    shutil.copytree(victim, "received")
    shutil.copyfile(tiny_data / "train.csv", "mine.csv")
    Path("texts.txt").write_text("warm film\nrude meal\n")
    names: dict = {}
    for block in shown:
        exec(block.replace('defense="rap"', 'defense="rap:retries=0,epochs=1"'), names)
    printed = capsys.readouterr().out
    assert "'prediction': 1" in printed
    assert "probability before" in printed or "{}" in printed
    assert names["guarded"](["warm film"])[0]["verdict"] in ("accept", "reject")
