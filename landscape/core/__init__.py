"""What the probes stand on."""
