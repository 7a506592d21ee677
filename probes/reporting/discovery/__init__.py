"""What the report shows of a discovery: its three sentences, its words, samples and texts."""
