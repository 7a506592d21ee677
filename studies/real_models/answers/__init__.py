"""What the study's tables say to each question, as tables for readers."""
