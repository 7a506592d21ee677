"""What a tuned model says, favours and represents differently on any texts, each finding beside its null."""
