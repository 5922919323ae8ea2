"""What a zoo is and where it comes from."""
