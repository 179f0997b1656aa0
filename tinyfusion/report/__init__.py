"""What many runs come to: tables, figures, and one page to look at."""
