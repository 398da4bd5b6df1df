"""What `kvrouter doctor` finds."""
