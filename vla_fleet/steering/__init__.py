# SPDX-License-Identifier: Apache-2.0
"""What rollouts and experiments both do: lead robots to versions and back, and give what robots did to a judge.

``reconcile`` decides, purely, which order each robot gets next. ``members`` reads what is known of robots and gives the orders.
``loop`` is their loop.
``evidence`` keeps judges, whose memory is a log in the database, and what became of each outcome.
"""
