# SPDX-License-Identifier: Apache-2.0
"""The demo: a simulated arm that changes its policy in motion, over HTTP, and undoes a bad one by itself.

``server`` a throttled checkpoint server that counts its bytes · ``processes`` the nodes as processes · ``node`` the driver's ROS
node · ``journal`` what the nodes reported · ``story`` the chapters · ``expectations`` what must have happened ·
``report`` the figures · ``timeline`` what is printed.
"""
