# SPDX-License-Identifier: Apache-2.0
"""The robot's line to the cloud. Its place is kept: the node, its client and its outbox come with the fleet server."""
