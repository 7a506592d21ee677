"""The statistics. The unit is the prompt, or its cluster; a test and the interval beside it answer one question."""
