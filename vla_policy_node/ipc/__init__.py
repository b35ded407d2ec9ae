# SPDX-License-Identifier: Apache-2.0
"""How the processes of one robot talk: memfd arenas for data, a socket for words, eventfd for wake-ups."""
