"""From an audited run to a release: thresholds, a certificate that anybody can check offline, a model that can be encrypted."""
