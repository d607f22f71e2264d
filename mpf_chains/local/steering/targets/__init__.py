"""What the outputs shall follow: a table of shares for each subject, read, checked and fitted."""
