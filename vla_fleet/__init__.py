# SPDX-License-Identifier: Apache-2.0
"""The cloud: which policies there are, which robot runs which, and who decided it. No ROS.

``vla-fleet serve`` runs it; robots connect through ``vla_fleet_bridge``; people and training scripts use ``vla-fleet`` or
:class:`vla_fleet.client.Client`.
"""
