# SPDX-License-Identifier: Apache-2.0
"""The robot's disk: versions, blobs, the saved state, and one object through which all of it is written."""
