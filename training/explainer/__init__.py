"""The explainer: a small network distilled from a teacher's attributions."""
