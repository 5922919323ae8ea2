"""What a backbone is measured by while it trains, on validation models and images alone."""
