"""The tasks that come with Cloister: `heart`, `digits`, `tabular`, `images` and `hub`."""
