"""The reward service: summaries to scores."""
