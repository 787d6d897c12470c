"""The explainer: a small transformer distilled from a teacher's attributions."""
