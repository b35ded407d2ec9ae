# SPDX-License-Identifier: Apache-2.0
"""Data sets from episodes: which ones (``selection``), how often each frame is drawn (``mix``), as LeRobotDataset v3.0."""
