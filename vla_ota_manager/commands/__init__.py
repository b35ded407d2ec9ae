# SPDX-License-Identifier: Apache-2.0
"""What people and programs can ask of the manager: its services and its action."""
