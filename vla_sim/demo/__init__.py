# SPDX-License-Identifier: Apache-2.0
"""The demo: a simulated arm that changes its policy in motion, over HTTP, and undoes a bad one by itself.

``story`` the chapters · ``expectations`` what must have happened · ``journal`` what the nodes reported · ``report`` the figures ·
``timeline`` what is printed · ``picture`` what is drawn · ``processes`` the nodes as processes · ``ros/driver`` the demo's node.
Beside it, shared with the tests: ``vla_sim/checkpoint_server.py``, ``dds.py`` (a ROS domain of one's own) and ``witness.py``
(which missed ticks are the machine's).
"""
