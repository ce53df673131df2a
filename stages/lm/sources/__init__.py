"""What people bring: a folder of files of any kind, read as documents or as records."""
