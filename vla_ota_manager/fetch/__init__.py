# SPDX-License-Identifier: Apache-2.0
"""How a bundle comes over the network: allowed sources, resumed downloads, and who vouches for it."""
