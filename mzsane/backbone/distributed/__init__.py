"""One backbone on several devices or processes."""
