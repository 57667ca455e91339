"""Statistics of a federation's records: the question as a federation file, and the answer with the error that its noise makes.

`asking` writes the file, which any engine and any deployment runs as a round of training (`cloister.core.tasks.statistics`); `answering` reads the
finished run, `estimates` turns noisy counts into counts, shares and quantiles with intervals, `page` shows them.
"""
