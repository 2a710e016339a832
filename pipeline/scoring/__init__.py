"""Stage one: every image of a corpus measured against the teacher and kept in a store."""
