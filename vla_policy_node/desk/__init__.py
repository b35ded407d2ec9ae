# SPDX-License-Identifier: Apache-2.0
"""What is done at a desk before a bundle is published: held against the robot contract, and run by the robot's own worker code.

``cli.py`` is the executable ``vla-checkpoint``: the commands of ``vla_checkpoint.cli`` and these.
"""
