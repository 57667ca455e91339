"""What is wrong with a site's records, found before anything is trained on them.

`checking.check_dataset` looks at one data set of ``site.toml`` and returns `Finding` objects; ``cloister site data FOLDER`` prints them. A finding
never holds a value of the data, but it counts records: it is for the site, and stays there.
"""

from cloister.client.data_check.checking import check_dataset
from cloister.client.data_check.finding import SEVERITIES, Finding, Severity

__all__ = ["SEVERITIES", "Finding", "Severity", "check_dataset"]
