"""Operations, one folder each, with all methods side by side."""
