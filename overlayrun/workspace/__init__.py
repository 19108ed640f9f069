"""A branch's directories, record and lock on disk."""
