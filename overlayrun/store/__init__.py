"""Git's objects and refs: the only user of pygit2."""
