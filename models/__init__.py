"""What a trained pair of classifier and explainer is: torch-free, for training and service."""
