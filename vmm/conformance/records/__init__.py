"""What a run leaves: records, on disk and summed up. Imports nothing that judges or prints."""
