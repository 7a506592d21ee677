"""The attribution methods, a file each. A new file here adds one: see `probes.methods.attribution_method`."""
