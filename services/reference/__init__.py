"""The reference service: log-probabilities under the frozen model from which the policy started."""
