# SPDX-License-Identifier: Apache-2.0
"""The fleet lesson's exercises on learning, with real policies trained and run in the simulator."""
