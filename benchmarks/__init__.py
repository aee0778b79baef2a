"""Times Andon's work against what a user would pick instead: ``python -m benchmarks.run``."""
