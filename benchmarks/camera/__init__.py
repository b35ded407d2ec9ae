# SPDX-License-Identifier: Apache-2.0
"""Three cameras as a process."""
