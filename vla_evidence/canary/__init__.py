# SPDX-License-Identifier: Apache-2.0
"""May this update go to more robots? The judge of a rollout."""
