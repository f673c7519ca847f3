"""What entered a run, in a file, and a run that gets the same again: no model, no clock."""
