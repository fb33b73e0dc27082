"""What a person looks at: the data, the curves, the mistakes."""
