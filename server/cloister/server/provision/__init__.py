"""Making a consortium: its offline certificate authority, each member's kit, renewal and revocation."""
