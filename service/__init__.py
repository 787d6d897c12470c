"""How a trained pair is served: FastAPI over `models`, without torch."""
