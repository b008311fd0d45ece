"""What tests share: fixtures and stand-ins."""
