"""Results for people: a look at the data, the curves, the report of a test, the predictions."""
