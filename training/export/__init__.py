"""From trained torch modules to bundles: one graph, its checks, and other precisions."""
