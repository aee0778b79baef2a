"""The evidence on which a rollout is decided: an always-valid test for each thing that may get worse."""
