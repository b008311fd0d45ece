"""Generic mutants: what mutation operators make of the sources, against the tests that execute what they change."""
