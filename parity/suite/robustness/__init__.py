"""Files that are damaged, or made to harm."""
