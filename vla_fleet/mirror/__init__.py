# SPDX-License-Identifier: Apache-2.0
"""A read-through cache of blobs for the robots of one site."""
