"""The behaviour metrics. A new file here adds one: see `tv.prompts.metric.metric`."""
