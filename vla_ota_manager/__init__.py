# SPDX-License-Identifier: Apache-2.0
"""Gets and keeps checkpoints on a robot: fetch, trust, store, trial, rollback."""
