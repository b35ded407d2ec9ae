# SPDX-License-Identifier: Apache-2.0
"""May I look again and again, and still be right? Tests and intervals, each on numpy and scipy alone."""
