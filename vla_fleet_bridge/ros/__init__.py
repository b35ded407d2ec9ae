# SPDX-License-Identifier: Apache-2.0
"""The bridge's node. The engine is outside."""
