# SPDX-License-Identifier: Apache-2.0
"""Read a bundle's files through and compare them with its manifest, without a worker and without memory for weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vla_checkpoint.bundle import Bundle, verify_bundle
from vla_checkpoint.errors import CancelledCheckError, CheckpointError
from vla_policy_node.worker.api import PrepareError
from vla_policy_node.worker.process import raise_nice_level


def check_files(bundle: Bundle, nice: int, on_fraction: Callable[[float], None], cancelled: Callable[[], bool]) -> None:
    """Hash every file, on a thread that stands back behind what acts.

    Args:
        bundle: that was opened.
        nice: how far the thread's nice level is raised.
        on_fraction: called with the share that is done, 0 to 1.
        cancelled: asked a few hundred times a gigabyte; true stops.

    Raises:
        PrepareError: CANCELLED, or the code of what is wrong (DIGEST_FILE, DIGEST_TENSOR, ...).
    """
    done, told, total = 0, 0, max(1, bundle.manifest.total_bytes)

    def progress(count: int) -> None:
        nonlocal done, told
        done += count
        if done - told >= total / 100:
            told = done
            on_fraction(done / total)

    def verify() -> None:
        verify_bundle(
            bundle.path, expected_digest=bundle.digest, scan_values=False, progress=progress, cancel=cancelled
        )

    with ThreadPoolExecutor(1, "check-files", initializer=raise_nice_level, initargs=(nice,)) as executor:
        try:
            executor.submit(verify).result()
        except CancelledCheckError as e:
            raise PrepareError("CANCELLED", "cancelled on request") from e
        except CheckpointError as e:
            raise PrepareError(e.code, str(e)) from e
