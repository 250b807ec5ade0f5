"""Training: the loop (`loop.train`), its options, and what keeps a run safe. Import from the files themselves."""
