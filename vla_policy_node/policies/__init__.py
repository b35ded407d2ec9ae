# SPDX-License-Identifier: Apache-2.0
"""One folder a policy type; ``base.py`` says what a policy is to the runtime."""
