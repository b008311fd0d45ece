"""The proof of single operations and models; imports no tools."""
