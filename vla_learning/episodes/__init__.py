# SPDX-License-Identifier: Apache-2.0
"""Episodes as files: what one holds (``format``), how it is read and written. MCAP, open to every tool that reads it."""
