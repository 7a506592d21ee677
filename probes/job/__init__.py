"""The main job: two checkpoints in, linked tables and a report out, stage by stage."""
