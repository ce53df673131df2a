"""What everything else stands on: errors, paths, safe writing of files, the artifact format."""
