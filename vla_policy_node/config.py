# SPDX-License-Identifier: Apache-2.0
"""Every setting of the policy node with its unit and range: the source of the node's ROS parameters."""

from __future__ import annotations

from dataclasses import dataclass

from vla_ros.settings import setting


@dataclass(frozen=True)
class PolicyNodeConfig:
    """Settings of one policy node."""

    contract: str = setting("", "Robot contract, a YAML file: topics, features, limits, hold. Required", path=True)
    store_dir: str = setting(
        "", "Store of ota_manager; the node starts from its `current`. Empty = no store", path=True
    )
    model_path: str = setting(
        "",
        "Bundle folder to start from while <store_dir>/current does not exist, for example a factory policy",
        path=True,
    )
    bundle_roots: tuple[str, ...] = setting(
        (), "More folders below which swap_model and prepare_model accept bundles", path=True
    )
    instruction: str = setting("", "Task in words while no episode names another", live=True)
    autostart: bool = setting(True, "Configure and activate at start-up, without a lifecycle manager")
    ota_manager: str = setting("ota_manager", "Name of the manager's node, whose status renews the lease of a trial")

    device: str = setting("cpu", "Device of the policy as torch names it, for example cpu or cuda:0")
    worker_python: str = setting(
        "", "Interpreter of the workers (one that has torch); empty = the node's own", path=True
    )
    worker_paths: tuple[str, ...] = setting(
        (), "Folders added to the workers' module path, for policies of your own", path=True
    )
    policy_modules: tuple[str, ...] = setting(
        (), "Policy types of your own as type=module, beside installed entry points"
    )
    worker_imports: tuple[str, ...] = setting(
        ("torch",), "Modules imported ahead for all workers; those not found are left out"
    )
    worker_host: str = setting(
        "", "A vla_ota_worker_host, as name:port, on which policies run instead of here; empty = they run here"
    )
    worker_tls: str = setting(
        "",
        "Folder with ca.pem, cert.pem and key.pem for the line to worker_host, which must be of the same CA",
        path=True,
    )
    worker_silence_s: float = setting(
        1.0, "A line to worker_host on which nothing was heard for so long counts as lost [s]", 0.1, 60.0
    )
    spare_worker: bool = setting(
        True, "Keep a worker waiting with its imports done: an update is loaded sooner, and its memory is gone"
    )
    load_in_place: bool = setting(
        False, "Room for one policy: another one is loaded in its place, at rest, and the robot holds meanwhile"
    )
    worker_threads: int = setting(1, "Threads of the policy's own computations in a worker", 1, 256)
    load_timeout_s: float = setting(300.0, "Longest preparation of a bundle [s]", 0.1, 86400.0)
    inference_timeout_s: float = setting(5.0, "A worker that owes a chunk this long counts as hung [s]", 0.05, 600.0)
    reload_attempts: int = setting(
        2, "Reloads of a committed policy whose worker was lost, before its standby takes over", 0, 100
    )
    reload_window_s: float = setting(600.0, "Clean time after which earlier losses are forgotten [s]", 1.0, 86400.0)

    shadow_chunks: int = setting(
        10,
        "Chunks of the robot's own observations that a new version must pass before it may act; 0 = no shadow",
        0,
        10000,
    )
    shadow_divergence_limit: float = setting(
        5.0,
        "How far a new version may differ in shadow from what acts, as a multiple of how far that differs from itself",
        0.1,
        1000.0,
    )
    shadow_only: bool = setting(
        False, "Command nothing: publish what the policy would do on ~/shadow_actions, beside what drives the robot"
    )

    fifo_priority: int = setting(
        10, "SCHED_FIFO priority of the control process where allowed; 0 = leave the scheduler alone", 0, 90
    )
    control_cpus: str = setting(
        "", "Processors for the control process where allowed, such as 3 or 2,6-7; empty = any of the node's"
    )
    trial_lease_s: float = setting(
        10.0, "A trial ends when the manager was silent this long, unless the request gives another [s]", 0.5, 3600.0
    )
    swap_timeout_s: float = setting(
        30.0, "Longest wait for a boundary, unless the request gives another [s]", 0.1, 86400.0
    )
    auto_swaps_per_episode: int = setting(
        1, "Swaps the node does by itself within one episode; further ones hold instead", 0, 100
    )

    require_episode: bool = setting(False, "Act only while an episode is open; hold otherwise")
    episode_timeout_s: float = setting(300.0, "Closes an episode that a dead client left open [s]", 1.0, 86400.0)
    reversal_deadband: float = setting(
        0.1, "Steps below this share of a channel's largest step do not count as reversals", 0.0, 1.0
    )
    status_period_s: float = setting(1.0, "Longest time between two statuses [s]", 0.05, 10.0)
