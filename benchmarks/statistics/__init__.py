"""What is computed of runs: metrics, readers and cases, differences, power."""
