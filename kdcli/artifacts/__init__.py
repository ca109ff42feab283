"""Directories on disk that stages write and read: manifests, atomic commits, locks, hashes."""
