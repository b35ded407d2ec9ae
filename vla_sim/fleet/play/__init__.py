# SPDX-License-Identifier: Apache-2.0
"""What demonstrations of a fleet share: chapters, what is seen of the fleet meanwhile, and the processes of a robot."""
