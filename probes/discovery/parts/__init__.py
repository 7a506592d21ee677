"""The parts of a discovery, a file each. A new file here adds one: see `probes.discovery.part.part`."""
