"""What a rollout is decided on: samples of both sides, their judges, real callers' fates, and people."""
