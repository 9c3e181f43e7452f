"""One script per question; every number in README.md comes from here."""
