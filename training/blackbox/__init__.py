"""Text classifiers that can be explained."""
