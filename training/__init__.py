"""How a pair of classifier and explainer is made; needs the extra `train`."""
