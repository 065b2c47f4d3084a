"""The web page's server: uploads, a queue of jobs with one model worker process, and their results."""
