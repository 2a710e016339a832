"""Scoring, stage one: measures every image of a corpus against the teacher and keeps the scores in a store."""
