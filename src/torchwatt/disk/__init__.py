"""How files are made and opened: private, whole or not at all, and never larger than their sender's bytes explain."""
