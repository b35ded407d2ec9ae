# SPDX-License-Identifier: Apache-2.0
"""May this update go to more robots? The judge of a rollout.

``judge`` decides, on what ``by_episode`` or ``by_robot`` have compared, or by the plain rule of ``simple``. ``config`` has the
stages and settings, ``endpoints`` what is compared and what a stage has seen, ``scores`` the limits of anomaly scores. A server
calls it through ``vla_evidence.log.rollout``.
"""
