# SPDX-License-Identifier: Apache-2.0
"""May I look again and again, and still be right? Tests and intervals, each on numpy and scipy alone.

On the robot: ``exceedance``, ``bounds``. Canary against incumbent: ``two_sample`` (harm, at any
time) and ``score_test`` (good enough, at planned looks). Whole robots: ``randomisation_test``. Pairs: ``sign_test``, and
``sign_test_batch`` for many runs at once; ``spending`` shares α among looks. One rate: ``intervals``.
"""
