"""What experts changed about each token: as records, on a page, in a terminal."""
