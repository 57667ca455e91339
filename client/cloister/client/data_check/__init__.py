"""What is wrong with a site's records, found before anything is trained on them.

`checking.check_dataset` looks at one data set of ``site.toml`` and returns `finding.Finding` objects; ``cloister site data FOLDER`` prints them. A
finding never holds a value of the data, but it counts records: it is for the site, and stays there.
"""
