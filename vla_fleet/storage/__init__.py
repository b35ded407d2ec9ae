# SPDX-License-Identifier: Apache-2.0
"""Where the server keeps things: rows in a database, files in a blob store, and a bus between replicas. Three small interfaces."""
