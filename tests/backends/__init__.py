"""One contract for every backend."""
