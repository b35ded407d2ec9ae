# SPDX-License-Identifier: Apache-2.0
"""Where the server keeps things: rows in a database, files in a blob store, hints on a bus. Three small interfaces."""
