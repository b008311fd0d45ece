"""What both backends need at run time and neither owns."""
