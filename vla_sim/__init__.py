# SPDX-License-Identifier: Apache-2.0
"""A small simulated arm over a table with coloured blocks: for the demo, the tests and the exercises.

``arm`` physics (MuJoCo) · ``kinematics`` of the arm · ``camera`` picture · ``task`` episodes · ``expert`` scripted teacher ·
``evaluate`` success rates · ``train`` and ``recipes`` bundles of ``tiny_vla`` · ``robot`` and ``node`` the arm on wall time ·
``demo`` the demo · ``witness``, ``checkpoint_server``, ``dds`` what demo, tests and benchmarks share.
"""
