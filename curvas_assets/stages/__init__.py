"""What each stage of a study does, without Dagster: plain functions from stored artefacts to stored artefacts, and one table of all."""
