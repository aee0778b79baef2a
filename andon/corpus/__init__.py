"""Documents, comparisons, loaders and the built-in corpus. Nothing here needs torch."""
