"""Callbacks and exporters: `.trainer` (Hugging Face), `.lightning`, `.mlflow`; each is imported only on request."""
