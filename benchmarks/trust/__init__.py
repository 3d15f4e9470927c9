"""The bench of trust: what strangers, bad links and kills do to a server and a device; see ``__main__``."""
