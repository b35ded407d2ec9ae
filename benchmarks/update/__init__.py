# SPDX-License-Identifier: Apache-2.0
"""What an update costs on the wire: real fine-tunes, our tensor deltas, and other ways of sending them."""
