"""Runs in LeRobot's own interpreter: makes small real checkpoints with LeRobot's classes, and what LeRobot itself does with them.

``python made_by_lerobot.py OUT BURNT`` writes OUT/<case>/pretrained_model (LeRobot's ``save_pretrained``) and OUT/<case>/run.npz:
observations ``[T, …]`` of an episode, LeRobot's own actions ``[T, A]`` for them by ``predict_action`` (one ``select_action`` a
step), and ``golden`` ``[H, A]``, a whole chunk for the first observation. Random numbers begin with SEED before the golden chunk,
then BURNT chunks are drawn that nobody looks at, as the worker does between golden replay and the first request.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.vqbet.configuration_vqbet import VQBeTConfig
from lerobot.utils.control_utils import predict_action
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

SEED = 7
CHUNKS = 4
JOINTS = 6
STATE, ACTION = "observation.state", "action"
TOP, WRIST = "observation.images.top", "observation.images.wrist_left"
SIZE = (48, 64)
BACKBONE = "tiny/smolvlm"


def features(*cameras: str) -> dict[str, Any]:
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (JOINTS,))}
    inputs |= {camera: PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for camera in cameras}
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (JOINTS,))}
    return {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}


def act(*cameras: str) -> ACTConfig:
    """LeRobot's default backbone name stays in config.json: nothing may be fetched because of it."""
    sizes = {"dim_model": 64, "n_heads": 4, "dim_feedforward": 128, "n_encoder_layers": 2, "n_vae_encoder_layers": 2}
    return ACTConfig(**features(*cameras), **sizes, chunk_size=20, n_action_steps=8, pretrained_backbone_weights=None)


def diffusion(*cameras: str) -> DiffusionConfig:
    sizes = {"down_dims": (32, 64), "diffusion_step_embed_dim": 32, "num_inference_steps": 5, "crop_shape": (40, 56)}
    return DiffusionConfig(**features(*cameras), **sizes, n_obs_steps=2, horizon=16, n_action_steps=8)


def vqbet() -> VQBeTConfig:
    gpt = {"gpt_input_dim": 32, "gpt_output_dim": 32, "gpt_n_layer": 2, "gpt_n_head": 2, "gpt_hidden_dim": 32}
    vae = {"vqvae_n_embed": 8, "vqvae_embedding_dim": 32, "vqvae_enc_hidden_dim": 32}
    return VQBeTConfig(**features(TOP), **gpt, **vae, crop_shape=(40, 56))


def smolvla() -> SmolVLAConfig:
    sizes = {"num_vlm_layers": 2, "resize_imgs_with_padding": (64, 64), "expert_width_multiplier": 0.5, "num_steps": 3}
    return SmolVLAConfig(**features(TOP, WRIST), **sizes, vlm_model_name=BACKBONE, chunk_size=20, n_action_steps=8)


def write_backbone(folder: Path) -> None:
    """A language model of the family that SmolVLA is built on, as its folder in the Hugging Face cache: tiny, and no weights."""
    names = ["fake_image_token", "image_token", "global_image_token", "end_of_utterance_token"]
    extra = dict(
        zip(names, ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"], strict=True)
    )
    words = ["<unk>", "<pad>", *extra.values(), *["put", "the", "block", "into", "box"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=extra
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**small, "model_type": "llama", "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    vision = {**small, "image_size": 64, "patch_size": 16}
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=3).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), fast, SmolVLMVideoProcessor()).save_pretrained(folder)


def statistics(config: Any, rng: np.random.Generator) -> dict[str, dict[str, torch.Tensor]]:
    stats = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        mean, std = rng.uniform(-20, 40, shape), rng.uniform(5, 30, shape)
        if feature.type is FeatureType.VISUAL:
            mean, std = rng.uniform(0.3, 0.6, shape), rng.uniform(0.1, 0.3, shape)
        values = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
        stats[key] = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    return stats


def episode(config: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Joints that move from step to step, and pictures of noise: every observation is another one."""
    steps = CHUNKS * executed(config)
    run = {STATE: rng.uniform(-60, 60, (steps, JOINTS)).astype(np.float32)}
    return run | {c: rng.integers(0, 256, (steps, *SIZE, 3), dtype=np.uint8) for c in config.image_features}


def executed(config: Any) -> int:
    return getattr(config, "n_action_steps", 0) or config.action_chunk_size


def chunk_size(config: Any) -> int:
    if config.type == "diffusion":
        return config.horizon - config.n_obs_steps + 1
    return config.action_chunk_size if config.type == "vqbet" else config.chunk_size


def act_once(policy: Any, processors: Any, observation: dict[str, np.ndarray]) -> np.ndarray:
    task = "put the block into the box"
    action = predict_action(dict(observation), policy, torch.device("cpu"), *processors, use_amp=False, task=task)
    return action[0].numpy().copy()


def run_with_lerobot(folder: Path, config: Any, processors: Any, observed: dict[str, np.ndarray], burnt: int) -> Any:
    """LeRobot's actions of the episode, and the whole first chunk."""
    whole = config if config.type == "vqbet" else dataclasses.replace(config, n_action_steps=chunk_size(config))
    first = {k: v[0] for k, v in observed.items()}
    torch.manual_seed(SEED)
    policy = get_policy_class(config.type).from_pretrained(folder, config=whole)
    policy.reset()
    torch.manual_seed(SEED)
    golden = np.stack([act_once(policy, processors, first) for _ in range(chunk_size(config))])
    for _ in range(burnt):
        policy.reset()
        act_once(policy, processors, first)
    state = torch.get_rng_state()
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    policy.reset()
    torch.set_rng_state(state)
    steps = len(observed[STATE])
    actions = [act_once(policy, processors, {k: v[t] for k, v in observed.items()}) for t in range(steps)]
    return np.stack(actions), golden


def make(out: Path, config: Any, burnt: int, *, dtype: torch.dtype = torch.float32, old: bool = False) -> None:
    rng = np.random.default_rng(SEED)
    folder = out / "pretrained_model"
    if config.type == "smolvla":  # LeRobot finds it from here, and we as a folder of the bundle
        write_backbone(folder / BACKBONE)
        os.chdir(folder)
    torch.manual_seed(SEED)
    policy = get_policy_class(config.type)(config)
    with torch.no_grad():
        for parameter in policy.parameters():  # a fresh network's actions hardly depend on what it sees
            parameter.add_(0.02 * torch.randn_like(parameter))
    stats = statistics(config, rng)
    processors = make_pre_post_processors(config, dataset_stats=stats)
    policy.to(dtype).save_pretrained(folder)
    if old:
        write_old_layout(folder, stats)
    else:
        for processor in processors:
            processor.save_pretrained(folder)
        processors = make_pre_post_processors(config, pretrained_path=str(folder))
    observed = episode(config, rng)
    actions, golden = run_with_lerobot(folder, config, processors, observed, burnt)
    if config.type == "act":  # as LeRobot's own training leaves it
        document = json.loads((folder / "config.json").read_text())
        document["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"
        (folder / "config.json").write_text(json.dumps(document, indent=4))
    np.savez(out / "run.npz", golden=golden, actions=actions, executed=executed(config), **observed)


def write_old_layout(folder: Path, stats: dict[str, dict[str, torch.Tensor]]) -> None:
    """LeRobot <= 0.3: statistics are buffers among the weights, and there are no processor files."""
    weights = load_file(folder / "model.safetensors")
    for key, entry in stats.items():
        modules = ("normalize_targets", "unnormalize_outputs") if key == ACTION else ("normalize_inputs",)
        for module in modules:
            for name in ("mean", "std"):
                weights[f"{module}.buffer_{key.replace('.', '_')}.{name}"] = entry[name].clone()
    save_file(weights, folder / "model.safetensors")


def main() -> None:
    out, burnt = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    make(out / "act", act(TOP), burnt)
    make(out / "act_bf16", act(TOP, WRIST), burnt, dtype=torch.bfloat16)
    make(out / "act_old", act(TOP, WRIST), burnt, old=True)
    make(out / "diffusion", diffusion(TOP, WRIST), burnt)
    make(out / "vqbet", vqbet(), burnt)
    make(out / "smolvla", smolvla(), burnt)


if __name__ == "__main__":
    main()
