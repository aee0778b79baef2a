"""Andon: reinforcement learning from human feedback as gRPC services."""

__version__ = "0.1.0"
