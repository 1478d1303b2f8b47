"""For the loops of others: `.trainer` (Hugging Face), `.lightning`, `.mlflow`; importing this loads none of them."""
