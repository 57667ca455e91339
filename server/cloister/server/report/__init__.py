"""What a run leaves for people and machines: ``report.html``, ``report.json`` and the model card.

`write_report` makes all three from the run folder alone; nothing here trains, reads records or reaches the network.
"""

from cloister.server.report.card import model_card
from cloister.server.report.figures import build_report
from cloister.server.report.writing import ReportPaths, write_report

__all__ = ["ReportPaths", "build_report", "model_card", "write_report"]
