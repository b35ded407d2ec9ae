# SPDX-License-Identifier: Apache-2.0
"""Values of a contract that a person still has to fill in: ``TODO`` stands there, and the parser refuses it by name.

``vla-contract init`` writes them with these texts as comments.
"""

from __future__ import annotations

TODO = "TODO"

_MEANINGS = {
    "fps": "control rate [Hz], one action of a chunk a tick: the rate that the policy was trained at",
    "robot_type": "the robot's type, as its bundles name it",
    "topic": "the topic's name; a relative one lies in the policy's namespace",
    "type": "the topic's message type, as `ros2 topic list -t` shows it",
    "select": "which field of the message each number is, in the policy's order",
    "resize": "[height, width] in pixels that the policy was trained with",
    "timeline": "header: age by the message's stamp; receive: by its arrival",
    "name": "what the bundle calls this channel",
    "unit": "unit of the policy's numbers for this channel: rad, m, deg, …",
    "mode": "absolute, relative (an action is a change of position), velocity or effort: what the policy's numbers are",
    "measured": "the selected observation field that measures this channel, such as position.shoulder",
    "limits": "bounds of this channel; a position has position, velocity and step",
    "position": "[low, high] that may ever be commanded: inside the joint's stops and clear of what the robot could hit",
    "velocity": "fastest change of the command a second that is safe where this robot stands; of a velocity channel: [low, high]",
    "acceleration": "fastest change of the commanded velocity a second",
    "effort": "[low, high] that may ever be commanded",
    "effort_rate": "fastest change of the commanded effort a second",
    "step": "a policy whose actions jump by more in one tick is stopped: well above the largest step of a good policy",
    "hold": "what the channel does while no policy acts: last_command, measured or zero_velocity; think of gravity and of a load",
    "max_decel": "how fast a hold brings the channel to rest, per second squared",
    "hold_timeout_s": "after so long in a hold commands are no longer published [s]; what does the controller do then?",
    "rest_step": "a command that changes by less in a tick is at rest",
    "downstream_timeout_ms": "after how long without commands the driver stops by itself [ms]",
    "required": "true: the robot moves only while a fresh true comes on motion_enabled; false: something else stops it",
    "timeout_s": "an older motion_enabled counts as false [s]",
    "observation_max_age_ms": "an older observation or measurement is a hold [ms]; a few periods of the slowest topic",
}


def meaning(key: str) -> str:
    """Return what belongs at a key, in words."""
    return _MEANINGS.get(key, "a value that only a person who knows this robot can fill in")
