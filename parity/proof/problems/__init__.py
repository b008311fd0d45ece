"""The problems that operations are tested on."""
