# SPDX-License-Identifier: Apache-2.0
"""HTTP and WebSocket in front of the rooms beside it. Bad input is refused here, with a code, before anything is touched."""
