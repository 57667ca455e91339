"""A site: its data, its local training, its ClientApp."""
