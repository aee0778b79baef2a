"""The deployable services; each is started with ``python -m services.<name>``."""
