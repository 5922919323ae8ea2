"""The page: tables, figures and words in one file."""
