# SPDX-License-Identifier: Apache-2.0
"""The page at ``/``: what the server knows, for people in a browser. It asks the same parts as the API and decides nothing."""
