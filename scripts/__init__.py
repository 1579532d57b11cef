"""Command line tools: the job driver, the reports, and what they share."""
