"""What every command needs first: device, processes, seeds, requests to stop."""
