"""tools/example.py: who is compared with whom, on what, and when it fails; with a program that says what it is told to."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRID_BEST = "0,-0.3,1"  # of the constant actions below
# Of all difficulties: success rate, action error.
LEARNED = {"policy": (0.8, 0.3), "control": (0.25, 0.7), "untrained": (0.0, 1.4), "constant": (0.1, 0.9)}


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Program:
    """In place of example.program: makes the folders that it is asked for, and evaluates to `outcomes` by difficulty."""

    def __init__(self, outcomes):
        self.outcomes, self.calls = outcomes, []

    def __call__(self, *words):
        words = [str(word) for word in words]
        self.calls.append(words)
        if words[0] == "eval":
            return json.dumps(self.report(words))
        folder = pathlib.Path(words[words.index("--out") + 1])
        folder.mkdir()
        (folder / "whole").touch()
        return ""

    def report(self, words):
        difficulty = pathlib.Path(words[words.index("--config") + 1]).parents[1].name
        rate, error = self.outcomes[difficulty][who(words)]
        if who(words) == "constant" and f"--constant={GRID_BEST}" not in words:
            rate = 0.0
        best = self.outcomes[difficulty]["constant"][1]
        errors = {"error": error, "margin": 0.03, "best_constant": best, "best_constant_margin": 0.02}
        return {"success_rate": rate, "successes": round(400 * rate), "episodes": 400, "interval": [rate - 0.05, rate + 0.05],
                "action_error": errors if "--held-out" in words else None}


def who(words):
    if "--untrained" in words:
        return "untrained"
    if any(word.startswith("--constant=") for word in words):
        return "constant"
    return "control" if any("run.dir" in word for word in words) else "policy"


@pytest.fixture
def example(tmp_path, monkeypatch):
    module = load("example")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "example")
    monkeypatch.setattr(module, "train", lambda *_: 1.5)
    return module


def run(example, outcomes, *difficulties):
    """(what it failed with or None, the program's calls)"""
    example.program = Program(outcomes)
    try:
        example.main(["--difficulty", *difficulties])
    except SystemExit as end:
        return str(end.code), example.program.calls
    return None, example.program.calls


def table_of(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")][2:]


def test_the_policy_is_shown_beside_all_others(example, capsys):
    failed, calls = run(example, {"permuted": LEARNED}, "permuted")
    assert failed is None
    text = capsys.readouterr().out
    rows = table_of(text)
    assert [row[1] for row in rows] == [example.POLICY, example.CONTROL, example.UNTRAINED, example.CONSTANT]
    assert rows[0][0] == "permuted" and rows[0][2] == "80.0 %, 75.0 to 85.0 % of 400 scenes" and rows[0][3] == "0.3000 +- 0.0300"
    assert rows[3][2].startswith("10.0 %") and rows[3][3] == "0.9000 +- 0.0200"
    assert [row[4] for row in rows] == ["", "yes", "yes", "yes"]
    figures = [line for line in text.splitlines() if line.startswith("FIGURE")]
    assert len(figures) == 12 and all(load("run_proofs").FIGURE.match(line) for line in figures)
    assert any(f"success rate of {example.CONTROL} = 25.0 % (95 %: 20.0 to 30.0; 400 unseen scenes)" in line for line in figures)


def test_all_are_measured_on_the_same(example):
    calls = [words for words in run(example, {"permuted": LEARNED}, "permuted")[1] if words[0] == "eval"]
    folder = example.FOLDER / "permuted"
    assert {words[words.index("--config") + 1] for words in calls} == {str(folder / "run" / "config.toml")}, "whose data is not shuffled"
    assert not any("--checkpoint" in words for words in calls), "eval finds the newest itself"
    models = [words for words in calls if who(words) != "constant"]
    assert {words[words.index("--held-out") + 1] for words in models} == {str(example.HELD_OUT)}
    assert len(models) == 3 and [f'run.dir="{folder}/control"'] == [word for words in models for word in words if word.startswith("run.dir")]
    constants = [words[-1].removeprefix("--constant=") for words in calls if who(words) == "constant"]
    assert len(set(constants)) == len(constants) > 100 and GRID_BEST in constants and "0,0,1" in constants and "mean" in constants
    values = [list(map(float, action.split(","))) for action in constants if action != "mean"]
    assert all(max(map(abs, action)) <= 1 and action[2] in (0, 1) for action in values)
    assert {action[2] for action in values} == {0, 1}


@pytest.mark.parametrize("change, words", [
    ({"control": (0.75, 0.7)}, "success rate of the control"),
    ({"constant": (0.72, 0.9)}, "success rate of the best constant action"),
    ({"control": (0.25, 0.35)}, "action error of the control"),
    ({"untrained": (0.79, 0.32)}, "success rate, action error of the untrained policy"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_intervals_must_lie_apart(example, capsys, change, words):
    failed, _ = run(example, {"anywhere": {**LEARNED, **change}}, "anywhere")
    assert failed and words in failed and "pads anywhere" in failed
    assert any(row[4].startswith("no: ") for row in table_of(capsys.readouterr().out))


def test_of_several_difficulties_the_examples_own_counts(example, capsys):
    weak = {**LEARNED, "policy": (0.2, 0.69)}
    assert example.USUAL in example.STEPS
    outcomes = {name: LEARNED if name == example.USUAL else weak for name in example.STEPS}
    failed, _ = run(example, outcomes, *example.STEPS)
    assert failed is None
    rows = table_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == [name for name in example.STEPS for _ in range(4)]
    assert all((row[4] == "no: success rate, action error") == (row[0] != example.USUAL) for row in rows if row[1] == example.CONTROL)
    failed, _ = run(example, {name: weak if name == example.USUAL else LEARNED for name in example.STEPS}, *example.STEPS)
    assert failed and f"pads {example.USUAL}" in failed


def test_what_an_interruption_left_is_made_anew(example):
    folder = example.FOLDER / "permuted"
    for name in "model", "model.partial", "data", "shuffled.partial":
        (folder / name).mkdir(parents=True)
        (folder / name / "old").touch()
    run(example, {"permuted": LEARNED}, "permuted")
    assert sorted(path.name for path in folder.iterdir()) == ["data", "model", "shuffled"]
    assert all([path.name for path in made.iterdir()] == ["whole"] for made in folder.iterdir())


def test_a_folder_has_its_name_only_when_it_is_whole(example):
    example.FOLDER.mkdir()

    def broken(*words):
        pathlib.Path(words[-1]).mkdir()
        raise SystemExit("no space")

    example.program = broken
    with pytest.raises(SystemExit):
        example.make(example.FOLDER / "model", "init-model")
    assert [path.name for path in example.FOLDER.iterdir()] == ["model.partial"]


def test_a_failed_training_ends_the_other(tmp_path, monkeypatch):
    example = load("example")
    program = tmp_path / "plimsoll"
    program.write_text('#!/bin/sh\ncase "$*" in *control*) echo it broke; exit 3;; esac\nexec sleep 100\n')
    program.chmod(0o755)
    monkeypatch.setattr(example, "PLIMSOLL", program)
    options = example.parsed(["--set", "train.stage=1"])
    with example.concurrent.futures.ThreadPoolExecutor(2) as pool, pytest.raises(SystemExit, match="control.log: training failed\nit broke"):
        example.train(tmp_path, 5, options, pool)


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--difficulty", "hard"], ["--difficulty", "fixed", "fixed"]])
def test_arguments(arguments, capsys):
    with pytest.raises(SystemExit):
        load("example").parsed(arguments)
    assert arguments[0] in capsys.readouterr().err
