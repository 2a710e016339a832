"""A small generated world: labelled streets for a teacher, and an unlabelled mixture to choose from."""
