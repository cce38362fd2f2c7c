"""Builds and trains a teacher, also for the time that a dry run tells."""
