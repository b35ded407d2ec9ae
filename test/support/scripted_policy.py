"""Policy type ``scripted``: real weights, numpy only, smooth sinusoids in physical units, and every misbehaviour on demand.

Action ``i`` of a chunk, per channel: ``offset + amplitude · sin(2π · frequency · (t + i / rate) + phase)``, where ``t`` is the
machine's monotonic clock: chunks fit together, also across generations with the same weights. For the instruction ``golden``,
``t`` is 0, so that golden observations have one answer.

Keys of config.json:

* inference (call 0 is the first one after warm-up): ``sleep_s``, ``live_sleep_s`` (from call 0 on), ``warm_up_sleep_s`` (the last
  call before it), ``crash_at_call``,
  ``exit_at_call``, ``hang_at_call``,
  ``spin_at_call`` (hangs with the interpreter's lock held), ``raise_at_call``, ``raise_always``, ``nan_at_call``,
  ``wrong_shape_at_call``, ``float64_at_call``, ``jump_at_call`` or ``jump_from_call`` with ``jump`` [physical unit],
  ``reset_raises_at`` (n-th reset)
* preparation: ``load_sleep_s``, ``load_crash``, ``load_raise``, ``load_no_memory``, ``warm_up_nan``, ``golden_error`` [physical
  unit], ``spec`` (replaces parts of the true one), ``child_process`` (leaves a ``sleep`` behind)
* input: ``n_obs_steps``, the observations it is shown at a time; ``repeats`` (action ``i`` is observation ``i``'s state)
* random numbers: ``noise`` [physical unit]
* ``from_state``: the sinusoid begins at t = 0 and is added to the observed state: the same observation gets the same answer
* ``spoils_weights``: from call 0 on it writes to the memory of its weights
* ``copies_weights``: it works with copies of its weights, as on a GPU; ``lets_go``: it says ``lets_tensors_go``
* output: ``echo`` (what was observed), ``print_resets``, ``print_lines`` (so many a call)
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.policies.base import FeatureSpec, FloatArray, Observation, Policy, PolicySpec, TensorView
from vla_policy_node.policies.errors import PolicyWeightsError

STATE = "observation.state"
WEIGHTS = ("amplitude", "frequency", "offset", "phase")


class ScriptedPolicy:
    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, FloatArray]) -> None:
        self._config, self._weights = config, weights
        features = {}
        for name, feature in config["input_features"].items():
            visual = feature["type"] == "VISUAL"
            shape = (*feature["shape"][1:], feature["shape"][0]) if visual else tuple(feature["shape"])
            features[name] = FeatureSpec(shape, "uint8" if visual else "float32")
        size = config["output_features"]["action"]["shape"][0]
        spec = PolicySpec(features, config["chunk_size"], config["n_action_steps"], size, history=config["n_obs_steps"])
        self.spec = dataclasses.replace(spec, **config.get("spec", {}))
        self.lets_tensors_go = config.get("lets_go", False)
        self.in_memory: list[FloatArray] = []
        self._calls = 0  # of any kind
        self.resets = 0
        self._random = np.random.default_rng()

    def seed(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def reset(self) -> None:
        self.resets += 1
        if self._config.get("print_resets"):
            print(f"reset {self.resets}", flush=True)
        if self.resets == self._config.get("reset_raises_at"):
            raise RuntimeError("reset went wrong")

    def predict_chunk(self, observation: Observation, instruction: str) -> FloatArray:
        config = self._config
        call = self._calls - config["calls_before_ready"]
        self._calls += 1
        for name, feature in self.spec.observation.items():
            shape = feature.shape if self.spec.history == 1 else (self.spec.history, *feature.shape)
            assert observation[name].shape == shape and observation[name].dtype == feature.dtype
        time.sleep(config.get("warm_up_sleep_s", 0.0) if call == -1 else 0.0)
        time.sleep(config.get("sleep_s", 0.0) if call < 0 else config.get("live_sleep_s", config.get("sleep_s", 0.0)))
        for _ in range(config.get("print_lines", 0)):
            print(f"call {call}", flush=True)
        self._misbehave(call)
        if config.get("echo"):  # tests see what the policy was given
            print(f"call {call} {instruction!r} {observation[STATE].tolist()}", flush=True)
        still = instruction == "golden" or config.get("from_state")
        chunk = self._sinusoid(0.0 if still else time.monotonic())
        if config.get("from_state"):
            chunk += np.asarray(observation[STATE], np.float32)
        if instruction == "golden":
            chunk += np.float32(config.get("golden_error", 0.0))
        if config.get("noise"):
            chunk += np.float32(config["noise"]) * self._random.standard_normal(chunk.shape, np.float32)
        if config.get("repeats"):
            chunk[: self.spec.history] = observation[STATE]
        if call == config.get("jump_at_call") or call >= config.get("jump_from_call", np.inf):
            chunk += np.float32(config["jump"])
        if call == config.get("nan_at_call") or (call < 0 and config.get("warm_up_nan") and instruction != "golden"):
            chunk[-1, 0] = np.nan
        if call == config.get("wrong_shape_at_call"):
            return chunk[:, :-1]
        if call == config.get("float64_at_call"):
            return chunk.astype(np.float64)  # type: ignore[return-value]
        return chunk

    def _misbehave(self, call: int) -> None:
        config = self._config
        if config.get("spoils_weights") and call >= 0:
            for weights in self.in_memory:
                weights += 1.0
        if call == config.get("crash_at_call"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if call == config.get("exit_at_call"):
            os._exit(7)
        if call == config.get("hang_at_call"):
            time.sleep(3600)
        if call == config.get("spin_at_call"):
            ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter's lock
        if call == config.get("raise_at_call") or (config.get("raise_always") and call >= 0):
            raise ValueError("the script says so")

    def _sinusoid(self, t: float) -> FloatArray:
        w, dt = self._weights, 1.0 / self._config["script_rate_hz"]
        times = t + np.arange(self.spec.horizon)[:, None] * dt
        angle = 2 * np.pi * w["frequency"].astype(np.float64) * times + w["phase"]
        chunk: FloatArray = (w["offset"] + w["amplitude"] * np.sin(angle)).astype(np.float32)
        return chunk[:, : self.spec.action_dim]


def preload(device: str) -> None:
    print(f"preloaded for {device}", flush=True)


def load(bundle_dir: Path, tensors: Mapping[str, TensorView], device: str) -> Policy:
    config = json.loads((bundle_dir / "config.json").read_text())
    time.sleep(config.get("load_sleep_s", 0.0))
    if config.get("load_crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.get("load_raise"):
        raise ValueError("the script says so")
    if config.get("load_no_memory"):
        raise MemoryError
    if config.get("child_process"):
        print(f"child {subprocess.Popen(['sleep', '3600']).pid}", flush=True)
    size = config["output_features"]["action"]["shape"][0]
    extra = set(config["ignored_tensors"])
    if wrong := (set(tensors) - extra) ^ set(WEIGHTS):
        raise PolicyWeightsError(f"tensors {sorted(wrong)} are missing or unknown")
    weights = {}
    for name in WEIGHTS:
        view = tensors[name]
        if (view.dtype, view.shape) != ("F32", (size,)):
            raise PolicyWeightsError(f"tensor {name!r} is {view.dtype} {view.shape}")
        weights[name] = np.frombuffer(view.data, np.float32).reshape(view.shape)
    if "mix.weight" in tensors:  # what adapters change: each channel's offset grows by its row's sum
        mix = np.frombuffer(tensors["mix.weight"].data, np.float32).reshape(tensors["mix.weight"].shape)
        weights["offset"] = weights["offset"] + mix.sum(axis=1)
    if config.get("copies_weights"):
        return ScriptedPolicy(config, {name: array.copy() for name, array in weights.items()})
    policy = ScriptedPolicy(config, weights)
    policy.in_memory = [np.frombuffer(tensors[name].data, np.float32) for name in WEIGHTS]
    return policy
