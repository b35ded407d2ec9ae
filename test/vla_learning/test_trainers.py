# SPDX-License-Identifier: Apache-2.0
"""Foreign trainers: they get what they need, their errors are reported, and what they wrote becomes a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.bundles import make_bundle
from support.refusals import refused

from vla_checkpoint import open_bundle
from vla_learning.training.command import CommandTrainer
from vla_learning.training.lerobot import LeRobotTrainer
from vla_learning.training.sealing import seal
from vla_learning.training.trainer import Task

PROGRAM = """
import shutil, sys
dataset, base, out, work, seed, episodes = sys.argv[1:]
print("epoch 1")
assert episodes == "0,2" and seed == "7"
shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
"""
PLACES = "{dataset} {base} {out} {work} {seed} {episodes}"
STAND_IN = """#!{python}
import json, pathlib, shutil, sys
arguments = dict(a.split("=", 1) for a in sys.argv[1:])
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments.get("--resume") != "true":
    made = pathlib.Path(arguments["--output_dir"]) / "checkpoints" / "last" / "pretrained_model"
    shutil.copytree(arguments["--policy.path"], made, ignore=shutil.ignore_patterns("manifest.json"))
    (made / "train_config.json").write_text("{{}}")
    sys.exit("out of memory")
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    make_bundle(tmp_path / "pick" / "1.0.0", name="pick", version="1.0.0")
    for name in ("out", "work", "data"):
        (tmp_path / name).mkdir()
    base = open_bundle(tmp_path / "pick" / "1.0.0")
    return Task(tmp_path / "data", base, (0, 2), tmp_path / "out", tmp_path / "work", 7, quiet=True)


def test_a_command_gets_its_places_filled_in_and_what_it_writes_is_the_candidate(task: Task, tmp_path: Path) -> None:
    program = tmp_path / "train me.py"
    program.write_text(PROGRAM)
    trained = CommandTrainer(f"{sys.executable} '{program}' {PLACES}").train(task)
    assert trained.kind == "full" and "epoch 1" in (task.work / "trainer.log").read_text()
    assert seal(task.out, task.base, trained.kind, {}).manifest.version == "1.0.1"  # nothing but the lineage changed


def test_a_program_that_fails_is_missing_or_badly_named_is_told(task: Task, tmp_path: Path) -> None:
    with refused("TRAINER_FAILED") as failed:
        CommandTrainer(f"{sys.executable} -c 'import sys; print(1); sys.exit(\"no data in there\")'").train(task)
    assert "no data in there" in str(failed.value)
    with refused("TRAINER_MISSING"):
        CommandTrainer("no-such-trainer --data {dataset}").train(task)
    with refused("TRAINER_TEMPLATE"):
        CommandTrainer("python train.py {data}").train(task)


def test_lerobot_train_is_given_the_run_and_goes_on_from_its_checkpoint(task: Task, tmp_path: Path) -> None:
    """A stand-in for the program notes its arguments, writes a checkpoint and dies; called again it goes on."""
    program, log = tmp_path / "lerobot-train", tmp_path / "calls"
    program.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    trainer = LeRobotTrainer(program=str(program), steps=40, more=("--num_workers=0",))
    with refused("TRAINER_FAILED"):
        trainer.train(task)
    trained = trainer.train(task)
    first, again = (json.loads(line) for line in log.read_text().splitlines())
    assert first["--dataset.episodes"] == "[0,2]" and first["--policy.path"] == str(task.base.path)
    assert first["--seed"] == "7" and first["--steps"] == "40" and first["--num_workers"] == "0"
    assert again["--resume"] == "true" and again["--config_path"].endswith("pretrained_model/train_config.json")
    assert trained.kind == "full" and seal(task.out, task.base, trained.kind, {}).manifest.policy_type == "scripted"
