"""Commands of the command line that are more than a call, by room. What they need is imported when they run."""
