# SPDX-License-Identifier: Apache-2.0
"""Signed metadata of published versions (TUF): keys, roots, and what a repository says. Nothing on a robot imports this."""
