"""Files of texts, row by row: in shards that survive a kill, here or on a cluster."""
