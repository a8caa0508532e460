"""What the measurements mean: result files in; figures, numbers and verdicts out. No torch."""
