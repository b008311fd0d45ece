"""What is put on the path of the processes of a run: see parity/suite/mutants/generic/coverage_record.py."""
