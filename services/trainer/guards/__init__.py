"""Independent witnesses that can hold a run."""
