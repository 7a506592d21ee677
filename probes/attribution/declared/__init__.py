"""What attribution methods are called, take and cost. Nothing here imports torch, so suites are checked quickly."""
