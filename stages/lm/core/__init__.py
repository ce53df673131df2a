"""Used by every other package: errors, paths, safe writing of files, the artifact format."""
