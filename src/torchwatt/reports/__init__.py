"""Makes a report from recorded readings and spans, and its tables, files and displays."""
