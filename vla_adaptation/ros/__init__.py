# SPDX-License-Identifier: Apache-2.0
"""The node of local adaptation. The engine is outside."""
