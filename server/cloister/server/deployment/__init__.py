"""A federation over real sites: the SuperLink, the jobs that users submit, and the process that runs each."""
