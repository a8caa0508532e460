"""What the probes share: spaces, directions, plans, result files, the command line."""
