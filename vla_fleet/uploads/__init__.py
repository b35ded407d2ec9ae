# SPDX-License-Identifier: Apache-2.0
"""Files that robots send piece by piece and the server keeps: episodes and adapters."""
