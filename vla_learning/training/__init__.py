# SPDX-License-Identifier: Apache-2.0
"""A data set and a base bundle in, a candidate bundle out.

``trainer.py`` is the contract that trainers keep; ``tiny_vla.py``, ``lerobot.py`` and ``command.py`` are those that come with the
package. ``run.py`` joins a trainer, the gate and the sealing of the bundle into a run that is recorded.
"""
