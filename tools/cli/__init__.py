"""The command line and what every command shares."""
