# SPDX-License-Identifier: Apache-2.0
"""Inference on a machine beside the robot: ``host.py`` is the program there, ``robot.py`` what stands for its policy here.

Both speak in the frames of ``line.py`` over TCP with mutual TLS 1.3.
"""
