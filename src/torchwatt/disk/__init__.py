"""Creates files privately and atomically, opens untrusted files with limits, and keeps descriptors and threads."""
