"""What attribution methods are called, take and cost. Nothing here waits for torch: suites are checked by it."""
