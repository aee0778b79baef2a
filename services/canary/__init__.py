"""Ships a policy version beside stable, step by step, on evidence."""
