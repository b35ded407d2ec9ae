# SPDX-License-Identifier: Apache-2.0
"""Errors of building a policy from a bundle.

* :class:`PolicyError`
    * :class:`PolicyConfigError` ``POLICY_CONFIG_INVALID``: config.json or stats.json does not describe such a policy
    * :class:`PolicyWeightsError` ``POLICY_WEIGHTS_MISMATCH``: the tensors are not the module's (name, shape or dtype)
    * :class:`PolicyAssetError` ``POLICY_ASSET_MISSING``: a tokenizer or processor is neither in the bundle nor on this machine
    * :class:`PolicyDeviceError` ``DEVICE_UNUSABLE``: this interpreter's torch has no such device
    * :class:`PolicyInputError` ``POLICY_INPUT_INVALID``: an observation does not have the policy's shape
"""

from __future__ import annotations


class PolicyError(Exception):
    """Root of the policies' errors; ``code`` is stable, the text is for people."""

    code = "POLICY_FAILED"


class PolicyConfigError(PolicyError):
    """A file of the bundle does not describe such a policy; the text names file and field."""

    code = "POLICY_CONFIG_INVALID"


class PolicyWeightsError(PolicyError):
    """The bundle's tensors are not exactly the module's."""

    code = "POLICY_WEIGHTS_MISMATCH"


class PolicyAssetError(PolicyError):
    """A tokenizer, or another part that is no tensor, would have to be fetched; the text names it."""

    code = "POLICY_ASSET_MISSING"


class PolicyDeviceError(PolicyError):
    """The device of the node's parameter is not there; the text names it."""

    code = "DEVICE_UNUSABLE"


class PolicyInputError(PolicyError):
    """An observation is missing or has the wrong shape or type."""

    code = "POLICY_INPUT_INVALID"
