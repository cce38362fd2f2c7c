"""The run of a job: its directory and lock, device, log, checkpoints, images, result and disk."""
