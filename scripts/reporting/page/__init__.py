"""The results page: one HTML file with tables, charts and runs, and a server that renews it."""
