"""What an operator sees of a process: structured logs and Prometheus metrics. Imports no torch."""
