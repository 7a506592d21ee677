"""What a person reads: the report, the comparison of runs, the diagnosis."""
