# SPDX-License-Identifier: Apache-2.0
"""The trial of a new version: what it is judged by, the judge, and who carries the verdict out."""
