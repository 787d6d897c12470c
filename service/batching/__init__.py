"""Texts of many requests in batches of the graph, on a few threads."""
