"""The book-keeping audit: do the sites' ledgers, the runs' events and the heads that others saw tell one story?"""
