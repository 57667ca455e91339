"""The leakage audit: reconstruction attacks on the very update that a site's own code makes, before and after its protection."""
