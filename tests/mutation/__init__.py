"""Mutation testing: `make mutants` changes the method's code at one place at a time and asks whether a test fails."""
