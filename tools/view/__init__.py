"""The page: what was captured, where it runs and what it costs, as one HTML file or served live."""
