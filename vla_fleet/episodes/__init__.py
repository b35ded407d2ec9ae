# SPDX-License-Identifier: Apache-2.0
"""Episodes that robots have uploaded, and the data sets that were built from them."""
